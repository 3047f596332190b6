//! `GET /api/products/{sku}/availability`: the hottest path. It asks the engine's wait-free snapshot, never the ring.
//!
//! Each server thread keeps the last body per SKU and renders anew only when the snapshot differs: reads come far more
//! often than batches.

use super::app::App;
use super::body::{Body, of_type};
use super::problem::Problem;
use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Response, StatusCode};
use std::cell::RefCell;
use std::fmt::Write;
use stockade::types::{Availability, SkuName};

thread_local! {
    /// By SKU index: what was rendered last, and of which engine (a process may serve several in turn).
    static RENDERED: RefCell<Vec<Option<(Availability, Bytes)>>> = const { RefCell::new(Vec::new()) };
}

/// Answers.
pub(crate) fn get(app: &App, name: &str) -> Result<Response<Body>, Problem> {
    let id = app.catalogue.id(name)?;
    let Some(now) = app.handle.availability(id) else {
        return Err(Problem::unknown_sku(name));
    };
    let index = id.0 as usize;
    let bytes = RENDERED.with_borrow_mut(|rendered| -> Result<Bytes, Problem> {
        if rendered.len() <= index {
            rendered.resize(index + 1, None);
        }
        match &mut rendered[index] {
            Some((of, bytes)) if *of == now => Ok(bytes.clone()),
            stale => {
                let names = app.catalogue.names();
                let known = names.name(id).ok_or_else(|| Problem::unknown_sku(name))?;
                let bytes = render(known, &now);
                *stale = Some((now, bytes.clone()));
                Ok(bytes)
            }
        }
    })?;
    let mut response = of_type(StatusCode::OK, "application/json", bytes);
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The body; with nothing available but something held, also when that may come back.
pub(crate) fn render(name: &SkuName, stock: &Availability) -> Bytes {
    let mut text = String::with_capacity(256);
    let name = serde_json::to_string(name.as_str()).unwrap_or_default();
    // Writing to a String can't fail.
    let _ = write!(
        text,
        "{{\"sku_id\":{name},\"available\":{},\"reserved\":{},\"sold\":{},\"total\":{},\"sequence\":{},\"as_of\":\"{}\"",
        stock.available, stock.reserved, stock.sold, stock.total, stock.sequence, stock.as_of
    );
    if let (0, Some(at)) = (stock.available, stock.not_before) {
        let _ = write!(text, ",\"not_before\":\"{at}\"");
    }
    text.push('}');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stockade::types::{SkuId, Timestamp};

    #[test]
    fn the_body_is_json_whatever_the_name() {
        let name = SkuName::new("a \"b\" \\ é").expect("a name");
        let stock = Availability {
            sku: SkuId(0),
            available: 0,
            reserved: 2,
            sold: 3,
            total: 5,
            sequence: 9,
            as_of: Timestamp::from_micros(0),
            not_before: Some(Timestamp::from_micros(1_000_000)),
        };
        let value: serde_json::Value =
            serde_json::from_slice(&render(&name, &stock)).expect("is JSON");
        assert_eq!(value["sku_id"], name.as_str());
        assert_eq!(value["reserved"], 2);
        assert_eq!(value["as_of"], "1970-01-01T00:00:00.000Z");
        assert_eq!(value["not_before"], "1970-01-01T00:00:01.000Z");
    }
}
