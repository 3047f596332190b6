//! What a rehearsal writes: decisions as NDJSON and the final stock as CSV. Both are compared byte for byte with the
//! oracle's, so their form is fixed: no spaces, no escapes that JSON doesn't need, `\n` at the end of a line.

use super::replay::Verdict;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use stockade::types::Availability;

#[derive(Serialize)]
struct DecisionLine<'a> {
    order: &'a str,
    decision: &'a str,
    /// The first failing one, in the cart's order; null where nothing failed.
    sku: Option<&'a str>,
}

/// One object per cart with lines left, in order.
pub(crate) struct Decisions(Option<BufWriter<File>>);

impl Decisions {
    /// Without a path, nothing is written.
    pub(crate) fn create(path: Option<&Path>) -> Result<Self> {
        let file = path.map(|path| {
            File::create(path).with_context(|| format!("can't write {}", path.display()))
        });
        Ok(Self(file.transpose()?.map(BufWriter::new)))
    }

    /// `names` are the SKUs by index.
    pub(crate) fn write(&mut self, order: &str, verdict: &Verdict, names: &[String]) -> Result<()> {
        let Some(out) = &mut self.0 else {
            return Ok(());
        };
        let (decision, sku) = match verdict {
            Verdict::Reserved => ("reserved", None),
            Verdict::Refused(code, sku) => (code.name(), *sku),
        };
        let sku = sku.and_then(|index| names.get(index)).map(String::as_str);
        serde_json::to_writer(
            &mut *out,
            &DecisionLine {
                order,
                decision,
                sku,
            },
        )?;
        out.write_all(b"\n").context("can't write the decisions")
    }

    /// Everything is in the file after this.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0 {
            Some(mut out) => out.flush().context("can't write the decisions"),
            None => Ok(()),
        }
    }
}

/// `sku,total,available,reserved,sold`, by first appearance.
pub(crate) fn write_final_stock(
    path: &Path,
    names: &[String],
    stock: &[Availability],
) -> Result<()> {
    let mut out =
        csv::Writer::from_path(path).with_context(|| format!("can't write {}", path.display()))?;
    out.write_record(["sku", "total", "available", "reserved", "sold"])?;
    for (name, stock) in names.iter().zip(stock) {
        let figures = [stock.total, stock.available, stock.reserved, stock.sold];
        out.write_field(name)?;
        out.write_record(figures.map(|figure| figure.to_string()))?;
    }
    out.flush().context("can't write the final stock")
}
