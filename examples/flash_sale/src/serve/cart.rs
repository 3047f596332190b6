//! A cart as JSON: `{"sku_id","quantity"}` or `{"lines":[{"sku_id","quantity"}, ..]}`.

use super::catalogue::{Catalogue, Names};
use super::problem::Problem;
use serde::{Deserialize, Serialize};
use stockade::types::{LINES_MAX, Line, Lines, QUANTITY_MAX};

/// As it comes.
#[derive(Debug, Deserialize)]
pub(crate) struct CartBody {
    sku_id: Option<String>,
    quantity: Option<i64>,
    lines: Option<Vec<LineBody>>,
}

#[derive(Debug, Deserialize)]
struct LineBody {
    sku_id: String,
    quantity: i64,
}

/// As it goes out.
#[derive(Debug, Serialize)]
pub(crate) struct LineView<'a> {
    sku_id: &'a str,
    quantity: u32,
}

impl CartBody {
    /// True if it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.sku_id.is_none() && self.lines.is_none()
    }

    /// The cart. Lines of one SKU are summed.
    pub(crate) fn lines(&self, catalogue: &Catalogue) -> Result<Lines, Problem> {
        match (&self.sku_id, &self.lines) {
            (Some(sku), None) => {
                let quantity = self.quantity.ok_or_else(|| {
                    Problem::bad_request("bad_request", "give a quantity, 1 or more")
                })?;
                let line = line(catalogue, sku, quantity)?;
                build([line].into_iter())
            }
            (None, Some(lines)) if lines.len() > LINES_MAX => Err(Problem::bad_request(
                "cart_invalid",
                format!(
                    "the cart has {} lines, at most {LINES_MAX} are possible: split the order",
                    lines.len()
                ),
            )),
            (None, Some(lines)) => {
                let lines: Result<Vec<_>, _> = lines
                    .iter()
                    .map(|body| line(catalogue, &body.sku_id, body.quantity))
                    .collect();
                build(lines?.into_iter())
            }
            _ => Err(Problem::bad_request(
                "bad_request",
                "give either sku_id and quantity, or lines",
            )),
        }
    }
}

fn line(catalogue: &Catalogue, sku: &str, quantity: i64) -> Result<Line, Problem> {
    let in_range = u32::try_from(quantity)
        .ok()
        .filter(|quantity| (1..=QUANTITY_MAX).contains(quantity));
    let quantity = in_range.ok_or_else(|| {
        Problem::bad_request(
            "quantity_invalid",
            format!("a quantity of {quantity}: give 1 to {QUANTITY_MAX}"),
        )
    })?;
    Ok(Line {
        sku: catalogue.id(sku)?,
        quantity,
    })
}

fn build(lines: impl Iterator<Item = Line>) -> Result<Lines, Problem> {
    Lines::new(lines).map_err(|error| Problem::bad_request("cart_invalid", error.to_string()))
}

/// The lines with their names.
pub(crate) fn view<'a>(names: &'a Names, lines: &[Line]) -> Vec<LineView<'a>> {
    lines
        .iter()
        .map(|line| LineView {
            sku_id: names
                .name(line.sku)
                .map_or("", stockade::types::SkuName::as_str),
            quantity: line.quantity,
        })
        .collect()
}
