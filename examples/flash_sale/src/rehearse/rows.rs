//! Rows of an order log: reads CSV, plain or gzipped, and gives the rows that can be used.
//!
//! Text is trimmed of Unicode white space at both ends; names are exact otherwise. Nothing in a file stops the
//! reading: what can't be used is counted in a [`Tally`] with the first of its kind.

use super::tally::{Cause, Tally};
use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::str::FromStr;
use stockade::types::Timestamp;

/// Which column holds what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    order: String,
    sku: String,
    quantity: String,
    user: String,
    time: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            order: "InvoiceNo".into(),
            sku: "StockCode".into(),
            quantity: "Quantity".into(),
            user: "CustomerID".into(),
            time: "InvoiceDate".into(),
        }
    }
}

impl FromStr for Columns {
    type Err = String;

    /// Reads `order=A,sku=B,...`; what is not mentioned keeps its default.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = Self::default();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (what, name) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}`: give WHAT=COLUMN, as in order=InvoiceNo"))?;
            let column = match what.trim() {
                "order" => &mut columns.order,
                "sku" => &mut columns.sku,
                "quantity" => &mut columns.quantity,
                "user" => &mut columns.user,
                "time" => &mut columns.time,
                other => {
                    return Err(format!(
                        "`{other}` is none of order, sku, quantity, user, time"
                    ));
                }
            };
            name.trim().clone_into(column);
        }
        Ok(columns)
    }
}

/// A usable row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// The line in the file that it begins on, from 1; with blank lines before it, the first of them.
    pub(crate) line: u64,
    pub(crate) order: String,
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    /// `None`: the row names none.
    pub(crate) user: Option<String>,
    /// `None`: the row has none that can be read.
    pub(crate) time: Option<Timestamp>,
}

/// Opens a file and undoes gzip, which is recognised by its first two bytes, not by the file's name.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
    let mut file = BufReader::with_capacity(1 << 18, file);
    let zipped = file
        .fill_buf()
        .with_context(|| format!("can't read {}", path.display()))?
        .starts_with(&[0x1f, 0x8b]);
    Ok(if zipped {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    })
}

/// The rows of one file, in order.
pub(crate) struct Rows<R> {
    reader: csv::Reader<R>,
    record: csv::ByteRecord,
    at: Positions,
}

/// Where the columns stand in the header.
struct Positions {
    order: usize,
    sku: usize,
    quantity: usize,
    user: Option<usize>,
    time: Option<usize>,
}

impl<R: Read> Rows<R> {
    /// Reads the header.
    pub(crate) fn new(source: R, columns: &Columns) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new()
            .flexible(true)
            .buffer_capacity(1 << 17)
            .from_reader(source);
        let names: Vec<String> = reader
            .byte_headers()
            .context("the header line can't be read")?
            .iter()
            .map(|name| {
                let name = String::from_utf8_lossy(name);
                name.trim_start_matches('\u{feff}').trim().to_owned()
            })
            .collect();
        let find = |name: &str| names.iter().position(|known| known == name);
        let need = |what: &str, name: &str| match find(name) {
            Some(at) => Ok(at),
            None => bail!(
                "the file has no column `{name}` for {what}; it has: {}. Say which it is: --columns {what}=NAME",
                names.join(", ")
            ),
        };
        let at = Positions {
            order: need("order", &columns.order)?,
            sku: need("sku", &columns.sku)?,
            quantity: need("quantity", &columns.quantity)?,
            user: find(&columns.user),
            time: find(&columns.time),
        };
        Ok(Self {
            reader,
            record: csv::ByteRecord::new(),
            at,
        })
    }

    /// The next usable row; what lies between goes to the tally.
    pub(crate) fn next(&mut self, tally: &mut Tally) -> Option<Row> {
        loop {
            let line = self.reader.position().line();
            match self.reader.read_byte_record(&mut self.record) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    tally.note(Cause::EndsEarly, line, &error.to_string());
                    return None;
                }
            }
            tally.rows += 1;
            let line = self.record.position().map_or(line, csv::Position::line);
            if self
                .record
                .iter()
                .any(|field| std::str::from_utf8(field).is_err())
            {
                let text = String::from_utf8_lossy(self.record.as_slice()).into_owned();
                tally.note(Cause::WrongUtf8, line, &text);
            }
            if let Some(row) = self.usable(line, tally) {
                return Some(row);
            }
        }
    }

    fn usable(&self, line: u64, tally: &mut Tally) -> Option<Row> {
        let order = self.field(self.at.order);
        let sku = self.field(self.at.sku);
        let quantity = self.field(self.at.quantity);
        let whole = || String::from_utf8_lossy(self.record.as_slice()).into_owned();
        for (text, cause) in [
            (&order, Cause::EmptyOrder),
            (&sku, Cause::EmptySku),
            (&quantity, Cause::EmptyQuantity),
        ] {
            if text.is_empty() {
                tally.note(cause, line, &whole());
                return None;
            }
        }
        let Some(quantity) = parse_quantity(&quantity) else {
            tally.note(Cause::DirtyQuantity, line, &quantity);
            return None;
        };
        let time = self
            .at
            .time
            .map(|at| self.field(at))
            .filter(|text| !text.is_empty());
        let read = time.as_deref().and_then(super::time::parse);
        if let (Some(text), None) = (&time, read) {
            tally.note(Cause::UnreadableTime, line, text);
        }
        Some(Row {
            line,
            order,
            sku,
            quantity,
            user: self
                .at
                .user
                .map(|at| self.field(at))
                .filter(|user| !user.is_empty()),
            time: read,
        })
    }

    fn field(&self, at: usize) -> String {
        let bytes = self.record.get(at).unwrap_or_default();
        String::from_utf8_lossy(bytes).trim().to_owned()
    }
}

/// An integer of 32 bits: an optional sign, digits, and at most a fraction of zeros (`6.0` is 6).
fn parse_quantity(text: &str) -> Option<i32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let only_zeros = !fraction.is_empty() && fraction.bytes().all(|byte| byte == b'0');
    (only_digits && only_zeros)
        .then(|| whole.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_integers_of_32_bits() {
        for (text, expected) in [
            ("6", Some(6)),
            ("6.0", Some(6)),
            ("-12.00", Some(-12)),
            ("+3", Some(3)),
            ("-0", Some(0)),
            ("007", Some(7)),
            ("2147483647", Some(i32::MAX)),
            ("-2147483648", Some(i32::MIN)),
            ("2147483648", None),
            ("-2147483649", None),
            ("6.5", None),
            ("6.", None),
            (".0", None),
            ("6e3", None),
            ("1,000", None),
            ("six", None),
            ("--6", None),
            ("6 0", None),
            ("NaN", None),
            ("\u{0666}", None),
        ] {
            assert_eq!(parse_quantity(text), expected, "{text}");
        }
    }

    #[test]
    fn columns_that_are_not_mentioned_keep_their_defaults() {
        let columns: Columns = "order=Bill, sku = Code".parse().expect("well formed");
        assert_eq!(
            (columns.order.as_str(), columns.sku.as_str()),
            ("Bill", "Code")
        );
        assert_eq!(columns.quantity, "Quantity");
        assert!("order".parse::<Columns>().is_err());
        assert!("price=Price".parse::<Columns>().is_err());
    }

    #[test]
    fn a_missing_column_is_named_with_the_ones_there_are() {
        let error = Rows::new(&b"\xEF\xBB\xBFInvoiceNo,Code\n"[..], &Columns::default());
        let error = error.err().expect("no SKU column").to_string();
        assert!(
            error.contains("StockCode") && error.contains("InvoiceNo, Code"),
            "{error}"
        );
    }

    #[test]
    fn short_long_and_empty_rows_do_not_stop_the_reading() {
        let text = b"InvoiceNo,StockCode,Quantity,CustomerID,InvoiceDate\n1,A\n\n2,B,3,u,x,extra\n3,C,\xFF4\n";
        let mut tally = Tally::default();
        let mut rows = Rows::new(&text[..], &Columns::default()).expect("has its columns");
        let row = rows.next(&mut tally).expect("row 2");
        assert_eq!((row.order.as_str(), row.quantity, row.line), ("2", 3, 3));
        assert_eq!(rows.next(&mut tally), None);
        assert_eq!(tally.rows, 3);
        assert_eq!(tally.count(Cause::EmptyQuantity), 1);
        assert_eq!(tally.count(Cause::UnreadableTime), 1);
        assert_eq!(tally.count(Cause::WrongUtf8), 1);
        assert_eq!(tally.count(Cause::DirtyQuantity), 1);
    }
}
