//! A client that asks over a connection of its own.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a service on this machine.
///
/// # Errors
///
/// When nobody listens.
pub fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request, with these lines among its head; returns the whole answer.
///
/// # Errors
///
/// When it is not answered.
pub fn ask(port: u16, path: &str, lines: &str) -> Result<String> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n");
    let mut stream = connect(port)?;
    stream.write_all(head.as_bytes())?;
    answered(&mut stream, path)
}

/// The answer to `request`: what comes until the connection is closed.
///
/// # Errors
///
/// When it does not come, or is no success.
pub fn answered(stream: &mut TcpStream, request: &str) -> Result<String> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the service does not answer")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 200"), "{request}: {answer}");
    Ok(answer)
}
