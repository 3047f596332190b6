//! Bodies: answers as one piece or as a stream, and requests read whole within a size and a time.

use super::peer::Streaming;
use super::problem::Problem;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// The largest request body that is read: 4,096 lines of 64 bytes each.
const BODY_SIZE_MAX: usize = 256 * 1024;
/// A larger one is still taken in and thrown away up to here, so that its sender gets to read the answer.
const BODY_DISCARD_MAX: usize = 32 * 1024 * 1024;
/// The whole body must have come within so long.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// An answer's body.
pub(crate) enum Body {
    /// All of it; `None` once it is sent, or empty.
    Full(Option<Bytes>),
    /// Pieces as they come, until the sender is dropped; and what keeps the connection busy meanwhile.
    Stream(mpsc::Receiver<Bytes>, Option<Streaming>),
}

impl Body {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces, _) => pieces
                .poll_recv(cx)
                .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(..) => SizeHint::default(),
        }
    }
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => of_type(status, "application/json", Bytes::from(bytes)),
        Err(error) => Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            error.to_string(),
        )
        .into_response(),
    }
}

/// An answer in one piece.
pub(crate) fn of_type(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The request's body as `T`. An empty body is an empty object.
pub(crate) async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, Problem> {
    let bytes = read(body).await?;
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        Problem::bad_request("bad_json", format!("the body is not as expected: {error}"))
    })
}

async fn read(body: Incoming) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIME_MAX, gather(body)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            format!("the body did not come within {} s", BODY_TIME_MAX.as_secs()),
        )),
    }
}

async fn gather(mut body: Incoming) -> Result<Bytes, Problem> {
    let mut size = 0;
    let mut first = Bytes::new(); // nearly always the only one
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::bad_request("bad_request", format!("the body breaks off: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        size += data.len();
        if size > BODY_DISCARD_MAX {
            break;
        } else if size > BODY_SIZE_MAX {
            rest.clear();
        } else if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if size > BODY_SIZE_MAX {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body has more than {BODY_SIZE_MAX} bytes: split the order"),
        ));
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(size);
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}
