//! Inputs written by tests: GGUF files, and a Hub on loopback.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// A GGUF file in the making.
pub struct GgufFile {
    metadata: BTreeMap<String, Vec<u8>>,
    tensors: BTreeMap<String, (Vec<usize>, u32, Vec<u8>)>,
    alignment: usize,
}

impl GgufFile {
    pub fn new(architecture: &str) -> Self {
        let mut file = Self { metadata: BTreeMap::new(), tensors: BTreeMap::new(), alignment: 32 };
        file.text("general.architecture", architecture);
        file
    }

    pub fn integer(&mut self, key: &str, value: u32) {
        self.metadata.insert(key.into(), [4u32.to_le_bytes(), value.to_le_bytes()].concat());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.metadata.insert(key.into(), [6u32.to_le_bytes(), value.to_le_bytes()].concat());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.metadata.insert(key.into(), [&8u32.to_le_bytes()[..], &string(value)].concat());
    }

    /// `shape` is row-major; the file has it reversed.
    pub fn f32_tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.tensor(name, shape, 0, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    /// A tensor of any ggml type.
    pub fn tensor(&mut self, name: &str, shape: &[usize], type_id: u32, bytes: Vec<u8>) {
        self.tensors.insert(name.into(), (shape.to_vec(), type_id, bytes));
    }

    /// Writes the file with another alignment than 32, and says so in it.
    pub fn align(&mut self, alignment: u32) {
        self.integer("general.alignment", alignment);
        self.alignment = alignment as usize;
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(string(key));
            out.extend(value);
        }
        let mut data = Vec::new();
        for (name, (shape, type_id, bytes)) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            for n in shape.iter().rev() {
                out.extend((*n as u64).to_le_bytes());
            }
            out.extend(type_id.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// llama.cpp's order of q and k rows: `reshape(heads, 2, hd/2, in).swapaxes(1, 2)`.
pub fn permute(values: &[f32], heads: usize, rows: usize, columns: usize) -> Vec<f32> {
    let half = rows / heads / 2;
    let mut out = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for second in 0..2 {
                let row = head * 2 * half + second * half + i;
                out.extend(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

/// A request that the [`Hub`] got.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub token: Option<String>,
    pub range: Option<String>,
}

/// A Hub on loopback that serves repositories from memory, ranges included, until the test process ends.
pub struct Hub {
    pub endpoint: String,
    pub requests: Arc<Mutex<Vec<Request>>>,
    /// After so many bytes of a body the connection is cut, once.
    pub cut_once_at: Arc<Mutex<Option<usize>>>,
}

/// The commit that every branch of the test's Hub points to.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

type Files = BTreeMap<String, Vec<u8>>;

impl Hub {
    /// `repositories` by `OWNER/NAME` or `datasets/OWNER/NAME`. With `token`, everyone else gets 401.
    pub fn serve(repositories: BTreeMap<String, Files>, token: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let cut = Arc::new(Mutex::new(None));
        let (repositories, log, cutter) = (Arc::new(repositories), requests.clone(), cut.clone());
        let token = token.map(|t| format!("Bearer {t}"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (repositories, log, token, cut) =
                    (repositories.clone(), log.clone(), token.clone(), cutter.clone());
                std::thread::spawn(move || {
                    // A client that goes away ends its connection.
                    let _ = answer(stream, &repositories, &log, token.as_deref(), &cut);
                });
            }
        });
        Self { endpoint, requests, cut_once_at: cut }
    }
}

fn answer(
    mut stream: TcpStream,
    repositories: &BTreeMap<String, Files>,
    log: &Mutex<Vec<Request>>,
    token: Option<&str>,
    cut: &Mutex<Option<usize>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let mut request = Request { path: path.clone(), token: None, range: None };
    for line in lines {
        let line = line?;
        let Some((key, value)) = line.split_once(": ") else { break };
        match key.to_ascii_lowercase().as_str() {
            "authorization" => request.token = Some(value.to_owned()),
            "range" => request.range = Some(value.to_owned()),
            _ => {}
        }
    }
    let (given, range) = (request.token.clone(), request.range.clone());
    log.lock().unwrap().push(request);
    let plain = |status: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    if token.is_some_and(|token| given.as_deref() != Some(token)) {
        return stream.write_all(&plain("401 Unauthorized", b""));
    }
    for (name, files) in repositories {
        let api = match name.strip_prefix("datasets/") {
            Some(name) => format!("/api/datasets/{name}/revision/"),
            None => format!("/api/models/{name}/revision/"),
        };
        if path.starts_with(&api) {
            let siblings: Vec<_> = files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
            let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
            return stream.write_all(&plain("200 OK", info.to_string().as_bytes()));
        }
        let resolve = format!("/{name}/resolve/{COMMIT}/");
        let Some(body) = path.strip_prefix(&resolve).and_then(|file| files.get(file)) else { continue };
        let (start, end) = match range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) {
            Some((start, end)) => (start.parse().unwrap_or(0), end.parse().map_or(body.len(), |e: usize| e + 1)),
            None => (0, body.len()),
        };
        let piece = &body[start..end.min(body.len())];
        let etag: String = Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\n\
             ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
            piece.len(),
            end - 1,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        let mut limit = cut.lock().unwrap();
        if limit.is_some_and(|limit| piece.len() > limit) {
            let limit = limit.take().unwrap_or(0);
            return stream.write_all(&piece[..limit]);
        }
        drop(limit);
        return stream.write_all(piece);
    }
    stream.write_all(&plain("404 Not Found", b""))
}
