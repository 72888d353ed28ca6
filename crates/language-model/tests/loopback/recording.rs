//! What is written down of exchanges, that it has no key, and that a replay repeats it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use language_model::{
    Cancel, Endpoint, EndpointError, Exchange, HttpEndpoint, Limits, Mismatch, Prompt, Protocol, Recorder, Recording,
    Replay, Section, Settings, recordings,
};

use crate::secret;
use crate::server::{Server, anthropic, events, openai, reply, stream};

const KEY: &str = "sk-live-0123456789-abcdefghij";

fn prompt(text: &str) -> Prompt {
    Prompt { changing: vec![Section::new("Question", text)], ..Prompt::default() }
}

fn endpoint(protocol: Protocol, server: &Server) -> HttpEndpoint {
    let settings = Settings {
        protocol,
        base_url: server.base_url(),
        model: "m".into(),
        key: Some(secret(KEY)),
        max_output_tokens: 9,
        parameters: serde_json::Map::new(),
        limits: Limits { retries: 1, first_wait: std::time::Duration::from_millis(1), ..Limits::default() },
    };
    HttpEndpoint::new(settings).expect("an endpoint")
}

/// Records the answers to `a`, `b` and so on.
fn record(folder: &Path, server: &Server, count: usize) -> Vec<Exchange> {
    let endpoint = endpoint(Protocol::OpenAi, server);
    let mut recorder = Recorder::new(endpoint, &folder.join("exchanges")).expect("a recorder");
    let ask = |question: char| recorder.ask(&prompt(&question.to_string()), &Cancel::default());
    ('a'..='z').take(count).map(ask).collect()
}

#[test]
fn every_exchange_is_a_file_and_can_be_replayed() {
    let folder = tempfile::tempdir().expect("a folder");
    let exchanges = folder.path().join("exchanges");
    let refusal = reply("400 Bad Request", "", r#"{"error":{"message":"no"}}"#);
    let server = Server::start([stream(openai("one")), refusal, stream(openai("three"))]);
    let recorded = record(folder.path(), &server, 3);
    assert!(recorded[1].outcome.is_err());

    let files = recordings(&exchanges).expect("a folder");
    let names: Vec<_> = files.iter().map(|path| path.file_name().expect("a name").to_owned()).collect();
    assert_eq!(names, ["000001.json", "000002.json", "000003.json"]);
    assert_eq!(fs::read_dir(&exchanges).expect("a folder").count(), 3, "nothing else is left there");
    for (index, path) in files.iter().enumerate() {
        let recording = Recording::read(path).expect("a recording");
        assert_eq!((recording.number, &recording.exchange), (index as u64 + 1, &recorded[index]));
        assert_eq!(recording.prompt_sha256, recording.prompt.sha256());
        assert_eq!(recording.endpoint.protocol, "openai");
    }

    let mut replay = Replay::open(&exchanges, Mismatch::Refuse).expect("a replay");
    assert_eq!((replay.identity().protocol.as_str(), replay.identity().model.as_str()), ("replay", "m"));
    for (question, expected) in ["a", "b", "c"].iter().zip(&recorded) {
        assert_eq!(&replay.ask(&prompt(question), &Cancel::default()), expected);
    }
    let over = replay.ask(&prompt("d"), &Cancel::default()).outcome;
    assert!(matches!(over, Err(EndpointError::ReplayOver { .. })), "{over:?}");
}

#[test]
fn recording_goes_on_behind_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(vec![stream(openai("x")); 3]);
    record(folder.path(), &server, 1);
    // What a killed writer may leave, and what somebody else may put there.
    fs::write(folder.path().join("exchanges/000002.new"), "{").expect("a file");
    fs::write(folder.path().join("exchanges/notes.json"), "{}").expect("a file");
    record(folder.path(), &server, 2);
    assert_eq!(recordings(&folder.path().join("exchanges")).expect("a folder").len(), 3);
    assert!(Replay::open(&folder.path().join("exchanges"), Mismatch::Refuse).is_ok());
}

#[test]
fn a_replay_notices_another_prompt() {
    let folder = tempfile::tempdir().expect("a folder");
    let exchanges = folder.path().join("exchanges");
    let server = Server::start(vec![stream(openai("x")); 2]);
    record(folder.path(), &server, 2);
    let mut strict = Replay::open(&exchanges, Mismatch::Refuse).expect("a replay");
    let outcome = strict.ask(&prompt("b"), &Cancel::default()).outcome;
    assert!(matches!(outcome, Err(EndpointError::ReplayDiffers { number: 1, .. })), "{outcome:?}");
    assert!(strict.ask(&prompt("a"), &Cancel::default()).outcome.is_ok(), "the recording is still there");
    let mut lenient = Replay::open(&exchanges, Mismatch::Allow).expect("a replay");
    assert!(lenient.ask(&prompt("b"), &Cancel::default()).outcome.is_ok());
    let cancel = Cancel::default();
    cancel.cancel();
    assert_eq!(lenient.ask(&prompt("b"), &cancel).outcome, Err(EndpointError::Cancelled));
}

#[test]
fn what_is_no_recording_is_told_with_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || Replay::open(folder.path(), Mismatch::Refuse).map(|_| ()).expect_err("no replay").to_string();
    assert!(open().contains("no recording in"));
    let path = folder.path().join("000001.json");
    fs::write(&path, "{").expect("a file");
    assert!(open().contains("000001.json"));
    let server = Server::start([stream(openai("x"))]);
    record(folder.path(), &server, 1);
    let recorded = fs::read_to_string(folder.path().join("exchanges/000001.json")).expect("a file");
    fs::write(&path, recorded.replace("\"version\": 1", "\"version\": 9")).expect("a file");
    assert!(open().contains("it has version 9"));
}

#[test]
fn an_answer_that_cannot_be_recorded_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let exchanges = folder.path().join("exchanges");
    let server = Server::start([stream(openai("x"))]);
    let mut recorder = Recorder::new(endpoint(Protocol::OpenAi, &server), &exchanges).expect("a recorder");
    fs::remove_dir(&exchanges).expect("an empty folder");
    let exchange = recorder.ask(&prompt("a"), &Cancel::default());
    assert!(matches!(exchange.outcome, Err(EndpointError::NotRecorded { .. })), "{exchange:?}");
    assert!(exchange.usage.total() > 0, "it is paid for all the same");
}

/// Everything that is logged, however fine.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_key_is_in_nothing_that_is_kept_or_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let mut shown = String::new();
    let mut arrived = 0;
    tracing::subscriber::with_default(subscriber, || {
        for (protocol, complete) in [(Protocol::OpenAi, openai(KEY)), (Protocol::Anthropic, anthropic(KEY))] {
            // A server that sends back what it got, wherever a server can.
            let failed =
                events(&[&format!(r#"{{"type":"error","error":{{"code":400,"message":"{KEY}","type":"x"}}}}"#)]);
            let declined = complete.replace("\"stop\"", "\"content_filter\"").replace("end_turn", "refusal");
            let replies = [
                stream(&complete),
                stream(complete.replace("served", KEY)),
                reply("500 Oops", "", KEY),
                reply("401 Unauthorized", "", format!(r#"{{"error":{{"message":"wrong: {KEY}"}}}}"#)),
                reply("200 OK", &format!("content-type: {KEY}\r\n"), KEY),
                reply("302 Found", &format!("location: http://127.0.0.1/{KEY}\r\n"), ""),
                stream(failed.replace("message\":\"", &format!("message\":\"{}", "x".repeat(280)))),
                stream(failed),
                stream(format!("data: {KEY}\n\n")),
                stream(declined),
                stream(format!("data: {KEY}")),
            ];
            let count = replies.len();
            let server = Server::start(replies);
            let mut recorder =
                Recorder::new(endpoint(protocol, &server), &folder.path().join("exchanges")).expect("a recorder");
            for _ in 0..count {
                let exchange = recorder.ask(&prompt("what is my key?"), &Cancel::default());
                let said = exchange.outcome.as_ref().map_or_else(ToString::to_string, |answer| answer.text.clone());
                shown += &format!("{exchange:?} {said}");
            }
            // A prompt that holds it is not sent, and is not written down either.
            let before = server.unseen();
            let leaking = recorder.ask(&prompt(&format!("log: {KEY}")), &Cancel::default());
            assert!(matches!(leaking.outcome, Err(EndpointError::KeyInPrompt { .. })), "{leaking:?}");
            assert_eq!(server.unseen(), 0);
            arrived += before;
            shown += &format!("{leaking:?} {recorder:?}");
        }
    });
    assert!(arrived >= 22, "{arrived} requests arrived");
    // Nor any part of it, where something was cut.
    let part = &KEY[..12];
    assert!(shown.contains("[key]") && !shown.contains(part), "{shown}");
    let log = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
    assert!(log.contains("asked again") && !log.contains(part), "{log}");
    let files = recordings(&folder.path().join("exchanges")).expect("a folder");
    assert_eq!(files.len(), 24);
    for path in files {
        let text = fs::read_to_string(&path).expect("a file");
        assert!(!text.contains(part), "{}", path.display());
    }
}
