//! Endpoints and recordings against a real server on loopback.

mod endpoint;
mod recording;
mod server;
