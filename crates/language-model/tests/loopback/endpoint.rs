//! Endpoints against a real server on loopback: what is sent, what is understood, and every fault.

use std::time::{Duration, Instant};

use crate::secret;
use crate::server::{HANGING, Reply, Server, Step, anthropic, events, openai, reply, stream};
use language_model::{
    Cancel, Endpoint, EndpointError, Exchange, HttpEndpoint, Limits, Prompt, Protocol, Section, Settings, Turn, Usage,
};
use serde_json::{Value, json};

const KEY: &str = "sk-0123456789";
/// Limits under which nothing but a fault is slow.
const LIMITS: Limits = Limits {
    connect: HANGING,
    idle: HANGING,
    total: HANGING,
    answer_bytes: 10_000,
    stream_bytes: 1 << 20,
    retries: 3,
    first_wait: Duration::from_millis(1),
    longest_wait: Duration::from_millis(5),
};
/// Long enough for a busy machine to answer on loopback, short enough to be waited for.
const SHORT: Duration = Duration::from_millis(500);

fn settings(protocol: Protocol, base_url: String) -> Settings {
    Settings {
        protocol,
        base_url,
        model: "asked".into(),
        key: Some(secret(KEY)),
        max_output_tokens: 512,
        parameters: serde_json::Map::from_iter([("temperature".to_owned(), json!(0.5))]),
        limits: LIMITS,
    }
}

fn prompt() -> Prompt {
    Prompt {
        stable: vec![Section::new("Task", "Lower the loss."), Section::new("Rules", "One file.")],
        changing: vec![Section::new("History", "Nothing yet.")],
        turns: Vec::new(),
    }
}

fn ask_with(settings: Settings) -> Exchange {
    HttpEndpoint::new(settings).expect("an endpoint").ask(&prompt(), &Cancel::default())
}

fn ask(protocol: Protocol, server: &Server) -> Exchange {
    ask_with(settings(protocol, server.base_url()))
}

/// What comes of one reply after which the server hangs up, without retries.
fn once(protocol: Protocol, reply: Reply) -> Exchange {
    let server = Server::start([reply]);
    let mut settings = settings(protocol, server.base_url());
    settings.limits.retries = 0;
    let exchange = ask_with(settings);
    assert_eq!(exchange.attempts, 1);
    exchange
}

fn text(exchange: &Exchange) -> &str {
    &exchange.outcome.as_ref().expect("an answer").text
}

fn error(exchange: Exchange) -> EndpointError {
    exchange.outcome.expect_err("an error")
}

fn body(request: &str) -> Value {
    serde_json::from_str(request.split_once("\r\n\r\n").expect("a body").1).expect("JSON")
}

#[test]
fn an_openai_server_is_asked_and_understood() {
    let server = Server::start([stream(events(&[
        r#"{"model":"served-1","choices":[{"delta":{"role":"assistant","content":""}}]}"#,
        r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
        r#"{"choices":[{"delta":{"content":"Grüße, "},"finish_reason":null}],"usage":null}"#,
        r#"{"choices":[{"delta":{"content":"Welt"}}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":64}}}"#,
        "[DONE]",
    ]))]);
    let exchange = ask(Protocol::OpenAi, &server);
    let answer = exchange.outcome.expect("an answer");
    assert_eq!((answer.text.as_str(), answer.model.as_str(), answer.cut_off), ("Grüße, Welt", "served-1", false));
    let usage = Usage { input: 36, cached_input: 64, cache_write: 0, output: 9, estimated: false };
    assert_eq!((exchange.usage, exchange.attempts), (usage, 1));

    let request = server.request();
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Bearer sk-0123456789\r\n"), "{request}");
    let expected = json!({
        "model": "asked", "stream": true, "stream_options": { "include_usage": true }, "max_tokens": 512,
        "temperature": 0.5,
        "messages": [
            { "role": "system", "content": "# Task\n\nLower the loss.\n\n# Rules\n\nOne file.\n" },
            { "role": "user", "content": "# History\n\nNothing yet.\n" },
        ],
    });
    assert_eq!(body(&request), expected);
}

#[test]
fn anthropic_is_asked_with_a_cached_beginning_and_understood() {
    let server = Server::start([stream(anthropic("Hello"))]);
    let exchange = ask(Protocol::Anthropic, &server);
    let answer = exchange.outcome.expect("an answer");
    assert_eq!((answer.text.as_str(), answer.model.as_str(), answer.cut_off), ("Hello", "served", false));
    let usage = Usage { input: 7, cached_input: 300, cache_write: 20, output: 45, estimated: false };
    assert_eq!(exchange.usage, usage);

    let request = server.request();
    assert!(request.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("x-api-key: sk-0123456789\r\n") && request.contains("anthropic-version: 2023-06-01\r\n"));
    let cached = json!({ "type": "ephemeral" });
    let expected = json!({
        "model": "asked", "stream": true, "max_tokens": 512, "temperature": 0.5,
        "system": [
            { "type": "text", "text": "# Task\n\nLower the loss.\n", "cache_control": cached },
            { "type": "text", "text": "# Rules\n\nOne file.\n", "cache_control": cached },
        ],
        "messages": [{ "role": "user", "content": "# History\n\nNothing yet.\n" }],
    });
    assert_eq!(body(&request), expected);
}

#[test]
fn no_more_beginnings_are_cached_than_the_api_allows() {
    let endpoint = HttpEndpoint::new(settings(Protocol::Anthropic, "http://localhost".into())).expect("an endpoint");
    let stable = (0..7).map(|n| Section::new(n.to_string(), "")).collect();
    let body = endpoint.body(&Prompt { stable, ..Prompt::default() });
    let marked: Vec<bool> =
        body["system"].as_array().expect("blocks").iter().map(|b| b.get("cache_control").is_some()).collect();
    assert_eq!(marked, [false, false, false, true, true, true, true]);
}

#[test]
fn a_parameter_of_null_leaves_a_field_out() {
    for protocol in [Protocol::OpenAi, Protocol::Anthropic] {
        let mut settings = settings(protocol, "http://localhost".into());
        settings.parameters.insert("stream_options".into(), Value::Null);
        settings.parameters.insert("top_k".into(), json!(40));
        let body = HttpEndpoint::new(settings).expect("an endpoint").body(&prompt());
        assert_eq!((body.get("stream_options"), &body["top_k"]), (None, &json!(40)));
    }
}

#[test]
fn a_conversation_goes_on() {
    let turns = vec![Turn { answer: "first".into(), reply: "it misses".into() }];
    let prompt = Prompt { turns, ..prompt() };
    for (protocol, complete) in [(Protocol::OpenAi, openai("x")), (Protocol::Anthropic, anthropic("x"))] {
        let server = Server::start([stream(complete)]);
        let mut endpoint = HttpEndpoint::new(settings(protocol, server.base_url())).expect("an endpoint");
        assert_eq!(text(&endpoint.ask(&prompt, &Cancel::default())), "x");
        let messages = body(&server.request())["messages"].clone();
        let messages = messages.as_array().expect("messages");
        let last =
            [json!({ "role": "assistant", "content": "first" }), json!({ "role": "user", "content": "it misses" })];
        assert_eq!(messages[messages.len() - 2..], last);
    }
}

#[test]
fn tokens_that_nobody_counted_are_estimated_and_marked() {
    let exchange = once(Protocol::OpenAi, stream(openai("123456789")));
    assert_eq!(text(&exchange), "123456789");
    let expected = Usage { input: prompt().tokens(), output: 3, estimated: true, ..Usage::default() };
    assert_eq!(exchange.usage, expected);
}

#[test]
fn streams_may_be_cut_into_any_pieces_and_spaced_in_any_legal_way() {
    let complete = openai("späť 🦀").replace("data: ", "data:").replace('\n', "\r\n");
    let body = format!("\u{feff}: a comment\r\n\r\nretry: 5\r\nid: 1\r\n\r\n{complete}");
    let mut steps = stream("");
    steps.push(Step::Trickle(body.into_bytes()));
    assert_eq!(text(&once(Protocol::OpenAi, steps)), "späť 🦀");
}

#[test]
fn an_answer_without_the_final_mark_is_complete_when_the_model_said_so() {
    let body = openai("whole").replace("data: [DONE]\n\n", "");
    assert_eq!(text(&once(Protocol::OpenAi, stream(&body))), "whole");
    // Nor does it matter what goes wrong afterwards.
    let mut slow = stream(&body);
    slow.push(Step::Hold);
    let server = Server::start([slow]);
    let mut settings = settings(Protocol::OpenAi, server.base_url());
    settings.limits.idle = SHORT;
    assert_eq!(text(&ask_with(settings)), "whole");
}

#[test]
fn an_answer_at_the_most_tokens_is_marked() {
    let body = openai("half").replace("\"stop\"", "\"length\"");
    assert!(once(Protocol::OpenAi, stream(body)).outcome.expect("an answer").cut_off);
    let body = anthropic("half").replace("end_turn", "max_tokens");
    assert!(once(Protocol::Anthropic, stream(body)).outcome.expect("an answer").cut_off);
}

#[test]
fn a_slow_endpoint_is_left_at_the_idle_limit_and_asked_again() {
    // Before the headers, after them, and in the middle of the text.
    let delta = events(&[r#"{"choices":[{"delta":{"content":"abc"}}]}"#]);
    let silent = |body: &str| stream(body).into_iter().chain([Step::Hold]).collect::<Reply>();
    let server = Server::start([vec![Step::Hold], silent(""), silent(&delta), stream(openai("at last"))]);
    let mut settings = settings(Protocol::OpenAi, server.base_url());
    settings.limits.idle = SHORT;
    let exchange = ask_with(settings);
    assert_eq!((text(&exchange), exchange.attempts), ("at last", 4));
    assert!(exchange.latency >= 3 * SHORT);
    // Each attempt that the server may have worked on is paid for.
    assert_eq!(exchange.usage.input, 4 * prompt().tokens());
    assert_eq!((exchange.usage.output, exchange.usage.estimated), (1 + 3, true));
}

#[test]
fn an_endpoint_that_stays_silent_is_an_error_with_the_limit() {
    let server = Server::start([vec![Step::Hold]]);
    let mut settings = settings(Protocol::Anthropic, server.base_url());
    settings.limits.idle = SHORT;
    settings.limits.retries = 0;
    let error = error(ask_with(settings));
    assert_eq!(error, EndpointError::Idle { limit: SHORT });
    assert!(error.is_transient() && error.to_string().contains("0.5 s"));
}

#[test]
fn the_total_limit_ends_what_never_pauses() {
    let mut endless = stream("");
    endless.push(Step::Flood(b": still here\n\n".to_vec()));
    let server = Server::start([endless]);
    let mut settings = settings(Protocol::OpenAi, server.base_url());
    settings.limits = Limits { total: SHORT, stream_bytes: usize::MAX, ..LIMITS };
    let exchange = ask_with(settings);
    assert!(exchange.latency >= SHORT);
    assert_eq!(exchange.usage.input, prompt().tokens());
    assert_eq!(error(exchange), EndpointError::TotalTime { limit: SHORT, attempts: 1 });
}

#[test]
fn a_stream_that_breaks_is_asked_for_again() {
    let half = events(&[r#"{"choices":[{"delta":{"content":"half"}}]}"#]);
    let chunked = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";
    let server = Server::start([
        // Closed in good order; within a chunk; before any header; within an event.
        stream(&half),
        reply("200 OK", chunked, "ffff\r\ndata: {"),
        vec![],
        stream(half.trim_end()),
    ]);
    let mut settings = settings(Protocol::OpenAi, server.base_url());
    settings.limits.retries = 4;
    let exchange = ask_with(settings);
    // The list of replies has ended: the fifth gets nothing at all, like the third.
    assert_eq!((exchange.attempts, exchange.usage.input), (5, 5 * prompt().tokens()));
    assert!(error(exchange).is_transient());
    for (protocol, whole) in [(Protocol::OpenAi, openai("whole")), (Protocol::Anthropic, anthropic("whole"))] {
        let cut = whole.split_inclusive("\n\n").take(1).collect::<String>();
        let server = Server::start([stream(cut), stream(whole)]);
        let exchange = ask(protocol, &server);
        assert_eq!((text(&exchange), exchange.attempts), ("whole", 2));
    }
}

#[test]
fn bytes_that_are_no_text_break_a_stream() {
    let mut bytes = events(&[r#"{"choices":[{"delta":{"content":"a"}}]}"#]).into_bytes();
    bytes.extend_from_slice(b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\xfe\"}}]}\n\n");
    assert!(matches!(error(once(Protocol::OpenAi, stream(&bytes))), EndpointError::Broken { .. }));
    let server = Server::start([stream(bytes), stream(openai("clean"))]);
    assert_eq!(text(&ask(Protocol::OpenAi, &server)), "clean");
}

#[test]
fn events_that_are_no_json_break_a_stream() {
    for body in ["data: {\"choices\": [\n\n", "data: hello\n\n", "data\n\n", "no field at all\n\n", "\u{0}\u{1}\n\n"] {
        for protocol in [Protocol::OpenAi, Protocol::Anthropic] {
            let error = error(once(protocol, stream(body)));
            assert!(matches!(error, EndpointError::Broken { .. }), "{body:?}: {error}");
        }
    }
    // JSON of another kind holds no answer, and then the stream ends.
    for body in [r#"[1, null, "x"]"#, r#"{"choices":{}}"#, r#"{"type":"news"}"#, "null", r#"{"type":7,"usage":[]}"#] {
        for protocol in [Protocol::OpenAi, Protocol::Anthropic] {
            let error = error(once(protocol, stream(events(&[body]))));
            assert!(error.to_string().contains("ended before"), "{body:?}: {error}");
        }
    }
}

#[test]
fn a_rate_limit_is_waited_for() {
    let limited = |after: &str| reply("429 Too Many Requests", after, r#"{"error":{"message":"slow down"}}"#);
    let server = Server::start([limited("retry-after: 1\r\n"), stream(openai("thanks"))]);
    let started = Instant::now();
    let exchange = ask(Protocol::OpenAi, &server);
    assert_eq!((text(&exchange), exchange.attempts), ("thanks", 2));
    assert!(started.elapsed() >= Duration::from_secs(1));

    // A date that is past means now.
    let server = Server::start([limited("Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), stream(anthropic("now"))]);
    assert_eq!(text(&ask(Protocol::Anthropic, &server)), "now");
}

#[test]
fn a_rate_limit_beyond_the_total_limit_is_told_at_once() {
    let server = Server::start([reply("429 Too Many Requests", "retry-after: 3600\r\n", "")]);
    let exchange = ask(Protocol::OpenAi, &server);
    assert_eq!((exchange.attempts, exchange.usage), (1, Usage::default()));
    let error = error(exchange);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    assert!(error.to_string().contains("in 3600 s"), "{error}");
}

#[test]
fn faults_of_the_server_pass() {
    let statuses = ["500 Internal Server Error", "503 Service Unavailable", "529 Overloaded"];
    let replies = statuses.map(|status| reply(status, "content-type: text/html\r\n", "<h1>Bad</h1>"));
    let server = Server::start(replies.into_iter().chain([stream(openai("up again"))]));
    let exchange = ask(Protocol::OpenAi, &server);
    assert_eq!((text(&exchange), exchange.attempts), ("up again", 4));
    assert_eq!(exchange.usage.input, prompt().tokens(), "a refusal costs nothing");

    let server = Server::start(vec![reply("500 Oops", "", "<html>\x1b[31m<h1>Bad gateway</h1>"); 4]);
    let exchange = ask(Protocol::OpenAi, &server);
    assert_eq!(exchange.attempts, 4, "one attempt and three retries");
    let message = error(exchange).to_string();
    assert!(message.contains("Bad gateway") && !message.contains('\x1b'), "{message}");
}

#[test]
fn errors_in_the_middle_of_a_stream_are_told_apart() {
    let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    let server = Server::start([stream(events(&[overloaded])), stream(anthropic("later"))]);
    assert_eq!(text(&ask(Protocol::Anthropic, &server)), "later");
    let invalid = r#"{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}"#;
    let message = "too long".to_owned();
    let rejected = EndpointError::Rejected { status: 400, message: message.clone() };
    assert_eq!(error(once(Protocol::Anthropic, stream(events(&[invalid])))), rejected);
    let openai = |code: &str| stream(events(&[&format!(r#"{{"error":{{"message":"too long","code":{code}}}}}"#)]));
    assert_eq!(error(once(Protocol::OpenAi, openai("400"))), rejected);
    let failed = |status| EndpointError::Server { status, retry_after: None, message: message.clone() };
    assert_eq!(error(once(Protocol::OpenAi, openai("502"))), failed(502));
    assert_eq!(error(once(Protocol::OpenAi, openai("\"server_error\""))), failed(500));
}

#[test]
fn an_empty_answer_is_an_error() {
    for (protocol, body) in [(Protocol::OpenAi, openai(" \n")), (Protocol::Anthropic, anthropic(""))] {
        assert_eq!(error(once(protocol, stream(body))), EndpointError::Empty { cut_off: false });
    }
    let thought_too_long = anthropic("").replace("end_turn", "max_tokens");
    let error = error(once(Protocol::Anthropic, stream(thought_too_long)));
    assert!(error.to_string().contains("raise max_output_tokens"), "{error}");
}

#[test]
fn an_endless_answer_is_cut_off() {
    let flood = |head: &str, rest: &str| stream(head).into_iter().chain([Step::Flood(rest.into())]).collect::<Reply>();
    let delta = events(&[r#"{"choices":[{"delta":{"content":"and on and on "}}]}"#]);
    let exchange = once(Protocol::OpenAi, flood("", &delta));
    assert!(exchange.usage.output >= 3000, "what was said is paid for");
    assert_eq!(error(exchange), EndpointError::TooLong { limit: LIMITS.answer_bytes });
    // Thinking, comments, and a line without an end are no text, but take room.
    let thinking = events(&[r#"{"choices":[{"delta":{"reasoning":"hm "}}]}"#]);
    for (head, rest) in [("", thinking.as_str()), ("", ": on\n\n"), ("data: ", "aaaaaaaa"), ("x", "xxxxxxxx")] {
        let error = error(once(Protocol::OpenAi, flood(head, rest)));
        assert_eq!(error, EndpointError::TooLong { limit: LIMITS.stream_bytes }, "{rest}");
    }
    // A refusal's body is read as far as it is quoted.
    let endless_refusal =
        reply("400 Bad Request", "", "").into_iter().chain([Step::Flood(b"no ".to_vec())]).collect::<Reply>();
    assert!(matches!(error(once(Protocol::OpenAi, endless_refusal)), EndpointError::Rejected { status: 400, .. }));
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let refused = |reason: &str| EndpointError::Refused { reason: reason.into() };
    let filtered = openai("I was about").replace("\"stop\"", "\"content_filter\"");
    assert_eq!(error(once(Protocol::OpenAi, stream(filtered))), refused("I was about"));
    let said = events(&[
        r#"{"choices":[{"delta":{"refusal":"I cannot "}}]}"#,
        r#"{"choices":[{"delta":{"refusal":"help."},"finish_reason":"stop"}]}"#,
    ]);
    assert_eq!(error(once(Protocol::OpenAi, stream(said))), refused("I cannot help."));
    let declined = anthropic("").replace("end_turn", "refusal");
    assert_eq!(error(once(Protocol::Anthropic, stream(declined))), refused("it gives no reason"));
}

#[test]
fn what_is_no_stream_is_told_with_its_beginning() {
    let page = reply("200 OK", "content-type: text/html\r\n", "<html>\n<title>Router login</title>");
    let message = error(once(Protocol::OpenAi, page)).to_string();
    assert!(message.contains("text/html") && message.contains("Router login") && message.contains("base_url"));
    for headers in ["content-type: application/json\r\n", ""] {
        let error = error(once(Protocol::Anthropic, reply("200 OK", headers, r#"{"content":[]}"#)));
        assert!(matches!(error, EndpointError::NotAStream { .. }), "{error}");
        assert!(!error.is_transient());
    }
}

#[test]
fn a_refused_key_is_named_and_not_tried_again() {
    for (protocol, status) in [(Protocol::OpenAi, "401 Unauthorized"), (Protocol::Anthropic, "403 Forbidden")] {
        let server = Server::start(vec![reply(status, "", r#"{"error":{"message":"bad key sk-0123456789"}}"#); 2]);
        let exchange = ask(protocol, &server);
        assert_eq!(exchange.attempts, 1);
        let message = error(exchange).to_string();
        assert!(message.contains("refuses the file") && message.contains("the-key"), "{message}");
        assert!(message.contains("bad key [key]") && !message.contains(KEY), "{message}");
    }
    let server = Server::start([reply("401 Unauthorized", "", "")]);
    let error = error(ask_with(Settings { key: None, ..settings(Protocol::OpenAi, server.base_url()) }));
    assert!(error.to_string().contains("a request without a key"), "{error}");
    assert!(!server.request().contains("authorization"));
}

#[test]
fn no_redirect_is_followed() {
    let elsewhere = Server::start([stream(openai("caught"))]);
    let location = format!("location: {}/chat/completions\r\n", elsewhere.base_url());
    for status in ["301 Moved", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let error = error(once(Protocol::OpenAi, reply(status, &location, "")));
        assert!(error.to_string().contains("redirects to http"), "{error}");
    }
    assert_eq!(elsewhere.unseen(), 0);
}

#[test]
fn a_server_that_is_not_there_is_looked_for_again() {
    let gone = Server::start([]).base_url();
    let exchange = ask_with(settings(Protocol::OpenAi, gone.clone()));
    assert_eq!((exchange.attempts, exchange.usage), (4, Usage::default()));
    let error = error(exchange);
    assert!(matches!(error, EndpointError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(gone.trim_end_matches("/v1")) && error.is_transient());
}

#[test]
fn another_thread_can_end_a_request() {
    let server = Server::start([vec![Step::Hold]]);
    let cancel = Cancel::default();
    let mut endpoint = HttpEndpoint::new(settings(Protocol::OpenAi, server.base_url())).expect("an endpoint");
    let exchange = std::thread::scope(|scope| {
        let asking = scope.spawn(|| endpoint.ask(&prompt(), &cancel));
        server.request();
        cancel.cancel();
        asking.join().expect("no panic")
    });
    assert_eq!((exchange.outcome, exchange.attempts), (Err(EndpointError::Cancelled), 1));
    assert_eq!(exchange.usage.input, prompt().tokens(), "the server may have worked on it");

    let exchange = endpoint.ask(&prompt(), &cancel);
    assert_eq!((exchange.outcome, exchange.attempts, server.unseen()), (Err(EndpointError::Cancelled), 0, 0));
}

#[test]
fn a_wait_between_attempts_ends_with_the_request() {
    let server = Server::start([reply("503 Busy", "retry-after: 50\r\n", "")]);
    let cancel = Cancel::default();
    let mut endpoint = HttpEndpoint::new(settings(Protocol::OpenAi, server.base_url())).expect("an endpoint");
    let outcome = std::thread::scope(|scope| {
        let asking = scope.spawn(|| endpoint.ask(&prompt(), &cancel).outcome);
        server.request();
        cancel.cancel();
        asking.join().expect("no panic")
    });
    assert_eq!(outcome, Err(EndpointError::Cancelled));
}
