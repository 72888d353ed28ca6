//! A server on loopback that answers each connection with the next of a list of replies, faults included.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// A test that hangs fails by this; no passing test waits for it.
pub const HANGING: Duration = Duration::from_secs(60);

/// What the server does with a request that it has read.
#[derive(Debug, Clone)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes one by one, each in a packet of its own.
    Trickle(Vec<u8>),
    /// Sends these bytes for ever.
    Flood(Vec<u8>),
    /// Sends nothing, until the client hangs up.
    Hold,
    /// Sends nothing for so long.
    #[allow(dead_code, reason = "a benchmark of the orchestrator uses it")]
    Pause(Duration),
}

/// A reply; the connection is closed at its end.
pub type Reply = Vec<Step>;

/// A running server. It ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    requests: Receiver<String>,
    end: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, requests) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let mut replies: VecDeque<Reply> = replies.into_iter().collect();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.try_recv().is_ok() {
                    break;
                }
                // A client that hangs up early is what some tests are about.
                let _ = stream.and_then(|stream| serve(stream, &mut replies, &seen));
            }
        });
        Self { address, requests, end, thread: Some(thread) }
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The next request that arrived, headers and body; waits for one.
    pub fn request(&self) -> String {
        self.requests.recv_timeout(HANGING).expect("a request")
    }

    /// How many requests arrived that [`Server::request`] has not given.
    pub fn unseen(&self) -> usize {
        self.requests.try_iter().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end.send(());
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        let outcome = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            outcome.expect("a thread").expect("the server's thread");
        }
    }
}

fn serve(mut stream: TcpStream, replies: &mut VecDeque<Reply>, seen: &Sender<String>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(HANGING))?;
    stream.set_write_timeout(Some(HANGING))?;
    stream.set_nodelay(true)?;
    let request = read_request(&mut stream)?;
    let reply = replies.pop_front().unwrap_or_default();
    let _ = seen.send(request);
    for step in reply {
        match step {
            Step::Send(bytes) => stream.write_all(&bytes)?,
            Step::Trickle(bytes) => bytes.iter().try_for_each(|byte| stream.write_all(&[*byte]))?,
            Step::Pause(time) => std::thread::sleep(time),
            Step::Flood(bytes) => loop {
                stream.write_all(&bytes)?;
            },
            Step::Hold => {
                // The client has nothing more to say, so this ends with an error: it hung up.
                stream.read_exact(&mut [0])?;
            }
        }
    }
    stream.shutdown(Shutdown::Both)
}

fn read_request(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
            let length: usize = header.and_then(|value| value.trim().parse().ok()).unwrap_or_default();
            if body.len() >= length {
                return Ok(text.into_owned());
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// A reply of a status line, headers and a body that ends with the connection.
pub fn reply(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\n\r\n").into_bytes();
    bytes.extend_from_slice(body.as_ref());
    vec![Step::Send(bytes)]
}

/// The beginning of a stream of events.
pub fn stream(body: impl AsRef<[u8]>) -> Reply {
    reply("200 OK", "content-type: text/event-stream; charset=utf-8\r\n", body)
}

/// Events as they are sent.
pub fn events(data: &[&str]) -> String {
    data.iter().map(|data| format!("data: {data}\n\n")).collect()
}

/// A complete answer in the manner of OpenAI, without a count of tokens.
pub fn openai(text: &str) -> String {
    let delta = serde_json::json!({ "model": "served", "choices": [{ "delta": { "content": text } }] });
    events(&[&delta.to_string(), r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, "[DONE]"])
}

/// A complete answer in the manner of Anthropic.
pub fn anthropic(text: &str) -> String {
    let delta = serde_json::json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": text } });
    events(&[
        r#"{"type":"message_start","message":{"model":"served","usage":{"input_tokens":7,"cache_creation_input_tokens":20,"cache_read_input_tokens":300,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"ping"}"#,
        &delta.to_string(),
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":45}}"#,
        r#"{"type":"message_stop"}"#,
    ])
}
