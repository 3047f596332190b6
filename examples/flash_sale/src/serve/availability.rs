//! `GET /api/products/{sku}/availability`: the hottest path. It asks the desk's snapshot, never the writer.
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
    /// By SKU index: what was rendered last, and of what.
    static RENDERED: RefCell<Vec<Option<(Availability, bool, Bytes)>>> = const { RefCell::new(Vec::new()) };
}

/// Answers.
pub(crate) fn get(app: &App, name: &str) -> Result<Response<Body>, Problem> {
    let id = app.catalogue.id(name)?;
    let Some(now) = app.desk.availability(id) else {
        return Err(Problem::unknown_sku(name));
    };
    let (index, is_stale) = (id.0 as usize, app.is_stale());
    let bytes = RENDERED.with_borrow_mut(|rendered| -> Result<Bytes, Problem> {
        if rendered.len() <= index {
            rendered.resize(index + 1, None);
        }
        match &mut rendered[index] {
            Some((of, was_stale, bytes)) if (*of, *was_stale) == (now, is_stale) => {
                Ok(bytes.clone())
            }
            other => {
                let names = app.catalogue.names();
                let known = names.name(id).ok_or_else(|| Problem::unknown_sku(name))?;
                let bytes = render(known, &now, is_stale);
                *other = Some((now, is_stale, bytes.clone()));
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

/// The body; with nothing available but something held, also when that may come back; and that it may have changed since.
pub(crate) fn render(name: &SkuName, stock: &Availability, is_stale: bool) -> Bytes {
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
    text.push_str(if is_stale { ",\"stale\":true}" } else { "}" });
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
            serde_json::from_slice(&render(&name, &stock, true)).expect("is JSON");
        assert_eq!(value["sku_id"], name.as_str());
        assert_eq!(
            (&value["reserved"], &value["stale"]),
            (&2.into(), &true.into())
        );
        assert_eq!(value["as_of"], "1970-01-01T00:00:00.000Z");
        assert_eq!(value["not_before"], "1970-01-01T00:00:01.000Z");
    }
}
