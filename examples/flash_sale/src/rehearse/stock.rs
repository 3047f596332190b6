//! The opening stock: one figure for every SKU, or a file of `sku,total`.

use super::rows;
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::path::Path;
use stockade::types::TOTAL_MAX;

/// How many units a SKU opens with.
#[derive(Debug, Default)]
pub(crate) struct OpeningStock {
    every: u64,
    by_sku: HashMap<String, u64>,
}

impl OpeningStock {
    /// `every` for each SKU that the file, if there is one, does not name.
    pub(crate) fn new(every: Option<u64>, file: Option<&Path>) -> Result<Self> {
        if every.is_none() && file.is_none() {
            bail!(
                "an order log doesn't say what was in stock: give --stock UNITS or --stock-file FILE"
            );
        }
        let by_sku = match file {
            Some(path) => {
                read(path).with_context(|| format!("the stock file {}", path.display()))?
            }
            None => HashMap::new(),
        };
        let stock = Self {
            every: every.unwrap_or(0),
            by_sku,
        };
        if let Some(most) = stock.by_sku.values().chain([&stock.every]).max()
            && *most > TOTAL_MAX
        {
            bail!("{most} units of a SKU are too many: at most {TOTAL_MAX}");
        }
        Ok(stock)
    }

    /// Of this SKU.
    pub(crate) fn of(&self, sku: &str) -> u64 {
        self.by_sku.get(sku).copied().unwrap_or(self.every)
    }
}

/// Unlike an order log, a stock file is written for us: what is wrong with it stops.
fn read(path: &Path) -> Result<HashMap<String, u64>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(rows::open(path)?);
    let headers = reader.headers().context("has no header line")?.clone();
    let find = |name: &str| {
        let found = headers
            .iter()
            .position(|header| header.trim_start_matches('\u{feff}') == name);
        found.with_context(|| format!("has no column `{name}`: its header must be sku,total"))
    };
    let (sku_at, total_at) = (find("sku")?, find("total")?);
    let mut by_sku = HashMap::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let sku = record.get(sku_at).unwrap_or_default();
        let total = record.get(total_at).unwrap_or_default();
        let total: u64 = total
            .parse()
            .with_context(|| format!("line {line}: `{total}` is no number of units"))?;
        if by_sku.insert(sku.to_owned(), total).is_some() {
            bail!("line {line}: SKU `{sku}` comes twice");
        }
    }
    Ok(by_sku)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stock_file_overrides_the_figure_for_every_sku() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(&file, "sku,total\nA,7\n\"B, large\",0\n").expect("writes");
        let stock = OpeningStock::new(Some(5), Some(file.path())).expect("well formed");
        assert_eq!(
            (stock.of("A"), stock.of("B, large"), stock.of("C")),
            (7, 0, 5)
        );
        std::fs::write(&file, "sku,total\nA,7\nA,8\n").expect("writes");
        assert!(OpeningStock::new(None, Some(file.path())).is_err());
        assert!(OpeningStock::new(None, None).is_err());
    }
}
