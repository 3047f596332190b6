//! `rehearse` against an oracle in another language that was written from the rules alone: on a small order log that has
//! every dirty case, both give the same decisions and the same final stock, byte for byte.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Every case that the rules mention, and some that a careless reader would trip over.
fn dirty_orders() -> Vec<u8> {
    let mut text = b"\xEF\xBB\xBFInvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n".to_vec();
    let rows: &[&[u8]] = &[
        b"1,A,lamp,6,2010-12-01 08:26:00,2.55,17850.0,UK",
        b"1,B,\"say \"\"hi\"\", twice\",6.0,2010-12-01 08:26:00,2.55,17850.0,UK",
        b"1,A,the same SKU again,2,2010-12-01 08:26:00,2.55,17850.0,UK",
        b"2,A,no user,1,2010-12-01 08:27:00,1,,UK",
        b"2,C,fraction,1.5,2010-12-01 08:27:00,1,,UK",
        b"1,A,order 1 comes again: a new cart,1,2010-12-01 08:28:00,1,17850.0,UK",
        b",A,no order,1,2010-12-01 08:28:00,1,1,UK",
        b"1,B,still the same run,1,2010-12-01 08:28:00,1,17850.0,UK",
        b"1,,no SKU,1,2010-12-01 08:28:00,1,1,UK",
        b"1,A,no quantity,,2010-12-01 08:28:00,1,1,UK",
        b"3,A,words,six,2010-12-01 08:29:00,1,1,UK",
        b"3,A,exponent,1e2,2010-12-01 08:29:00,1,1,UK",
        b"3,A,bare point,6.,2010-12-01 08:29:00,1,1,UK",
        b"3,A,beyond i32,2147483648,2010-12-01 08:29:00,1,1,UK",
        b"3,A,below i32,-2147483649,2010-12-01 08:29:00,1,1,UK",
        b"4,NEVER,a write-off makes no SKU known,-3,2010-12-01 08:30:00,0,,UK",
        b"4,NEVER,nothing,0,2010-12-01 08:30:00,0,,UK",
        b"5,D,too many,2147483647,2010-12-01 08:31:00,1,7,UK",
        b"5,D,their sum is beyond i32,2147483647,2010-12-01 08:31:00,1,7,UK",
        b"6,E,one short,3,,1,7,UK",
        b"6,D,fails,21,,1,7,UK",
        b"6,F,fails too but later,99,,1,7,UK",
        b"7,E,last one,20,not a time,1,7,UK",
        b"8,E,sold out,1,2010-12-01 08:32:00,1,8,UK",
        b"C9,E,back,-5,2010-12-01 08:33:00,1,7,UK",
        b"C9,E,and back,-2.0,2010-12-01 08:33:00,1,7,UK",
        b"C9,A,more than was sold,-100,2010-12-01 08:33:00,1,7,UK",
        b"C9,B,positive in a cancellation,1,2010-12-01 08:33:00,1,7,UK",
        b"C9,G,never sold,-1,2010-12-01 08:33:00,1,7,UK",
        b"C9,H,nothing back,0,2010-12-01 08:33:00,1,7,UK",
        b"C9,E,beyond i32,-2147483649,2010-12-01 08:33:00,1,7,UK",
        b"10,E,what came back,7,2010-12-01 07:00:00,1,9,UK",
        b"11,caf\xC3,wrong UTF-8 in the SKU,1,2010-12-01 08:34:00,1,9,UK",
        b"11,ok,wrong UTF-8 elsewhere \xFF\xFE,1,2010-12-01 08:34:00,1,9,UK",
        b"12\xE2\x82,A,wrong UTF-8 in the order,1,2010-12-01 08:34:00,1,9,UK",
        b" 13 , A\xC2\xA0,trimmed, 1 ,2010-12-01 08:35:00,1,9,UK",
        b"14,a,lower case is another SKU,20,2010-12-01 08:36:00,1,9,UK",
        b"15,\"I, quoted\",comma in the SKU,1,2010-12-01 08:37:00,1,9,UK",
        b"15,\"J \"\"x\"\"\",quotes in the SKU,1,2010-12-01 08:37:00,1,9,UK",
        b"16,KKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKK,over 64 bytes,1,2010-12-01,1,9,UK",
        b"17,L\tL,a control character,21,2010-12-01 08:38:00,1,9,UK",
        b"18,short",
        b"",
        b"19,M,long row,2,2010-12-01 08:39:00,1,9,UK,and,more",
        b"+20,N,plus,+3,2010-12-01 08:39:00,1,9,UK",
        b"c21,N,a small c is no cancellation,-1,2010-12-01 08:39:00,1,9,UK",
        b"c21,N,a small c is no cancellation,1,2010-12-01 08:39:00,1,9,UK",
        b"C22,N,cancellation of a run that comes again,-1,2010-12-01 08:40:00,1,9,UK",
        b"C9,N,the id of an earlier cancellation,-3,2010-12-01 08:40:00,1,9,UK",
        b"23,\"O\nO\",a line break in the SKU,1,2010-12-01 08:41:00,1,9,UK\r",
    ];
    for row in rows {
        text.extend_from_slice(row);
        text.push(b'\n');
    }
    for line in 0..2_000 {
        writeln!(
            text,
            "24,wide-{line},a wide cart,1,2010-12-01 08:42:00,1,10,UK"
        )
        .expect("memory");
    }
    for line in 0..5_000 {
        writeln!(
            text,
            "25,wide-{line},wider than one command,20,2010-12-01 08:43:00,1,10,UK"
        )
        .expect("memory");
    }
    for line in 2_000..7_000 {
        writeln!(
            text,
            "26,wide-{line},and all of it there,1,2010-12-01 08:44:00,1,10,UK"
        )
        .expect("memory");
    }
    text.extend_from_slice(b"27,A,the last line has no end,1,,,,");
    text
}

fn oracle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/rehearse_oracle.py")
}

fn succeed(command: &mut Command) -> Output {
    let output = command
        .output()
        .expect("the program starts: Python 3 must be installed");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs both on the same input and compares what they write. Gives the program's summary and the oracle's counts.
fn compare(orders: &Path, flags: &[&str]) -> (serde_json::Value, serde_json::Value) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let ours = succeed(
        Command::new(env!("CARGO_BIN_EXE_flash-sale"))
            .args(["rehearse", "--json"])
            .arg(orders)
            .args(flags)
            .arg("--decisions")
            .arg(at("ours.ndjson"))
            .arg("--final-stock")
            .arg(at("ours.csv")),
    );
    let theirs = succeed(
        Command::new("python3")
            .arg(oracle())
            .arg(orders)
            .args(flags)
            .arg("--decisions")
            .arg(at("theirs.ndjson"))
            .arg("--final-stock")
            .arg(at("theirs.csv")),
    );
    for kind in ["ndjson", "csv"] {
        let ours = fs::read_to_string(at(&format!("ours.{kind}"))).expect("written");
        let theirs = fs::read_to_string(at(&format!("theirs.{kind}"))).expect("written");
        for (line, (ours, theirs)) in (1..).zip(ours.lines().zip(theirs.lines())) {
            assert_eq!(ours, theirs, "{kind}, line {line}, {flags:?}");
        }
        assert_eq!(ours, theirs, "{kind}, {flags:?}");
    }
    (
        serde_json::from_slice(&ours.stdout).expect("a summary in JSON"),
        serde_json::from_slice(&theirs.stdout).expect("counts in JSON"),
    )
}

#[test]
fn rehearse_agrees_with_the_oracle_on_every_dirty_case() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let orders = folder.path().join("orders.csv");
    fs::write(&orders, dirty_orders()).expect("writes");
    let stock = folder.path().join("stock.csv");
    fs::write(&stock, "sku,total\nE,20\nA,3\n\"I, quoted\",0\n").expect("writes");
    let stock = stock.to_str().expect("a readable path");
    for flags in [
        &["--stock", "20"][..],
        &["--stock", "0"],
        &["--stock", "5000000000"],
        &["--stock", "20", "--per-user", "7"],
        &["--stock-file", stock],
        &["--stock-file", stock, "--stock", "21"],
        &["--stock", "20", "--cancel-prefix", ""],
        &["--stock", "20", "--cancel-prefix", "2"],
    ] {
        let (ours, theirs) = compare(&orders, flags);
        for count in [
            "rows",
            "carts",
            "reserved",
            "refused",
            "cancellations",
            "returns",
            "returns_refused",
        ] {
            assert_eq!(ours[count], theirs[count], "{count}, {flags:?}");
        }
        for cause in [
            "empty_order",
            "empty_sku",
            "empty_quantity",
            "dirty_quantity",
            "not_positive",
            "wrong_utf8",
        ] {
            let count = ours["findings"][cause]["count"].as_u64().unwrap_or(0);
            assert_eq!(Some(count), theirs[cause].as_u64(), "{cause}, {flags:?}");
        }
        assert_eq!(ours["audit"]["ok"], true);
    }
}

#[test]
fn gzip_is_recognised_by_content_and_a_broken_off_file_counts_as_far_as_it_goes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plain = dirty_orders();
    let zipped = folder.path().join("orders.dat");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).expect("memory");
    let bytes = encoder.finish().expect("memory");
    fs::write(&zipped, &bytes).expect("writes");
    compare(&zipped, &["--stock", "20"]);

    fs::write(&zipped, &bytes[..bytes.len() / 2]).expect("writes");
    let output = succeed(
        Command::new(env!("CARGO_BIN_EXE_flash-sale"))
            .args(["rehearse", "--json", "--stock", "20"])
            .arg(&zipped),
    );
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(summary["findings"]["ends_early"]["count"], 1);
    assert!(summary["carts"].as_u64() > Some(0));
}

#[test]
fn a_rehearsal_without_stock_or_columns_says_what_to_give() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let orders = folder.path().join("orders.csv");
    fs::write(&orders, "Bill,Code,Amount\n1,A,2\n").expect("writes");
    let run = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_flash-sale"))
            .arg("rehearse")
            .arg(&orders)
            .args(flags)
            .output()
            .expect("starts");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run(&[]).contains("--stock"));
    let error = run(&["--stock", "1"]);
    assert!(
        error.contains("Bill, Code, Amount") && error.contains("--columns"),
        "{error}"
    );
    succeed(
        Command::new(env!("CARGO_BIN_EXE_flash-sale"))
            .args([
                "rehearse",
                "--stock",
                "1",
                "--columns",
                "order=Bill,sku=Code,quantity=Amount",
            ])
            .arg(&orders),
    );
}
