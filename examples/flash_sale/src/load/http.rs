//! A small HTTP/1.1 client: it shares two cores with the server that it measures, so it does no more than it must.
//!
//! Keep-alive, pipelining, bodies with a Content-Length. What our own server sends, and nothing more: no chunks, no
//! continuation, no redirects.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer for so long is a failure.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
const HEAD_SIZE_MAX: usize = 16 * 1024;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a text member of a JSON body, as our server writes it; no escapes.
    pub(crate) fn text(&self, member: &str) -> Option<&str> {
        let body = std::str::from_utf8(&self.body).ok()?;
        let (_, rest) = body.split_once(&format!("\"{member}\":\""))?;
        rest.split_once('"').map(|(value, _)| value)
    }
}

/// One connection, which is opened when it is needed.
pub(crate) struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    /// Where the unread part of the buffer begins.
    at: usize,
}

impl Connection {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
            buffer: Vec::with_capacity(16 * 1024),
            at: 0,
        }
    }

    /// Sends one request and gives its answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        let mut answer = None;
        self.ask_all(request, 1, |status, body| {
            answer = Some(Answer {
                status,
                body: body.to_vec(),
            });
        })
        .await?;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Sends `count` requests at once, gives each answer as it comes. After an error the connection is opened anew for
    /// the next.
    pub(crate) async fn ask_all(
        &mut self,
        requests: &[u8],
        count: usize,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let exchange = async {
            self.open().await?;
            self.stream()?.write_all(requests).await?;
            for _ in 0..count {
                self.answer(&mut each).await?;
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(ANSWER_TIME_MAX, exchange).await;
        let outcome = outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if outcome.is_err() {
            self.stream = None;
        }
        outcome
    }

    async fn open(&mut self) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
            self.buffer.clear();
            self.at = 0;
        }
        Ok(())
    }

    fn stream(&mut self) -> io::Result<&mut TcpStream> {
        self.stream
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    async fn answer(&mut self, each: &mut impl FnMut(u16, &[u8])) -> io::Result<()> {
        loop {
            let unread = self.buffer.get(self.at..).unwrap_or_default();
            if let Some((status, head, body)) = parse_head(unread)?
                && let Some(bytes) = unread.get(head..head + body)
            {
                each(status, bytes);
                self.at += head + body;
                return Ok(());
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            let Some(stream) = self.stream.as_mut() else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Status, size of the head and size of the body, once the head is whole.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(u16, usize, usize)>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Some(end) = find_head_end(bytes) else {
        if bytes.len() > HEAD_SIZE_MAX {
            return Err(invalid("the answer's head is too long"));
        }
        return Ok(None);
    };
    let head = bytes.get(..end).unwrap_or_default();
    let status = head
        .get(9..12)
        .filter(|_| head.starts_with(b"HTTP/1.1 "))
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .ok_or_else(|| invalid("the answer is no HTTP/1.1"))?;
    let mut length = 0;
    for line in head.split(|&byte| byte == b'\n') {
        const NAME: &[u8] = b"content-length:";
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let value = std::str::from_utf8(&line[NAME.len()..]).unwrap_or_default();
            length = value
                .trim()
                .parse()
                .map_err(|_| invalid("a Content-Length that is no number"))?;
        }
    }
    Ok(Some((status, end, length)))
}

fn find_head_end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|&byte| byte == b'\r') {
        if bytes.get(from + at..)?.starts_with(b"\r\n\r\n") {
            return Some(from + at + 4);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let text = b"HTTP/1.1 201 Created\r\nContent-Length: 12\r\nx: y\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(parse_head(&text[..cut]).expect("a part is fine"), None);
        }
        assert_eq!(
            parse_head(text).expect("well formed"),
            Some((201, text.len(), 12))
        );
        assert!(parse_head(b"SSH-2.0 hello\r\n\r\n").is_err());
    }

    #[test]
    fn members_are_found_in_a_body() {
        let answer = Answer {
            status: 201,
            body: br#"{"reservation_id":"res-1","status":"RESERVED"}"#.to_vec(),
        };
        assert_eq!(answer.text("reservation_id"), Some("res-1"));
        assert_eq!(answer.text("code"), None);
    }
}
