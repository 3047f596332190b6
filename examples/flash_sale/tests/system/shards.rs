//! Two writers, each with its own share of the SKUs, behind one API node.

use crate::backends::System;
use crate::common::{flash_sale, token};
use stockade::kafka::Placement;
use stockade::types::SkuName;

/// A SKU of each shard.
fn skus() -> [String; 2] {
    let placement = Placement::new(2);
    [0, 1].map(|shard| {
        let mut names = (0..).map(|n| format!("SKU-{n}"));
        let is_there = |name: &String| {
            let name = SkuName::new(name).expect("a name");
            placement.partition_of(&name) == shard
        };
        names.find(is_there).expect("half of them are")
    })
}

#[test]
fn two_writers_sell_a_share_each_and_an_audit_covers_both() {
    let _alone = crate::alone();
    let system = System::of_shards(2);
    let skus = skus();
    let [first, second] = &skus;
    // Each is told both, and sells its own.
    let flags = skus.each_ref().map(|sku| format!("--sku={sku}=100"));
    let flags = flags.each_ref().map(String::as_str);
    let writers = [0, 1].map(|shard| system.writer_of(shard, &flags).listens());
    let node = system.node(0);
    let stock = || {
        let rows = "SELECT shard, sku_id, sold FROM stockade.inventory ORDER BY shard, sku_id";
        system.places.sql(rows)
    };
    assert_eq!(stock(), format!("0|{first}|0\n1|{second}|0"));
    let ann = token("ann");
    let line = |sku: &str| format!(r#"{{"sku_id":"{sku}","quantity":1}}"#);
    for sku in &skus {
        let held = node.reserve(&ann, sku, &line(sku)).is(201);
        node.checkout(&ann, &held.text("reservation_id"), "card")
            .is(200);
    }
    assert_eq!(stock(), format!("0|{first}|1\n1|{second}|1"));
    let both = format!(r#"{{"lines":[{},{}]}}"#, line(first), line(second));
    node.reserve(&token("bob"), "both", &both)
        .is_problem(400, "cross_group");

    let why = system.writer_of(2, &flags).refuses();
    assert!(why.contains("has no shard 2: there are 2"), "{why}");
    // What is there already is told, and what to do if it isn't what was asked for.
    let (is_done, said) = system.init(&["--shards", "2", "--nodes", "4"]);
    assert!(is_done, "fewer nodes than there may be: {said}");
    for (flags, why) in [
        (["--shards", "1"], "say --shards 2"),
        (["--shards", "3"], "say --shards 2"),
        (
            ["--shards=2", "--nodes=9"],
            "reservation-replies has 8 partitions, too few for 9 nodes",
        ),
    ] {
        let (is_done, said) = system.init(&flags);
        assert!(!is_done && said.contains(why), "{flags:?}: {said}");
    }

    let asks = |command: &str| {
        let asked = flash_sale()
            .arg(command)
            .env("FLASH_SALE_STORE", &system.places.store)
            .output();
        let asked = asked.expect("the program starts");
        let said = [asked.stdout, asked.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (asked.status.success(), said)
    };
    let (is_fine, said) = asks("audit");
    assert!(is_fine && said.contains("all laws hold"), "{said}");
    assert!(skus.iter().all(|sku| said.contains(sku)), "{said}");
    for writer in writers {
        assert!(writer.terminate());
    }
    let edits = "UPDATE stockade.inventory SET available = available + 1, sold = sold - 1";
    assert_eq!(
        system.places.sql(&format!("{edits} WHERE shard = 1")),
        "UPDATE 1"
    );
    let (is_fine, said) = asks("audit");
    let names = format!("inventory row {second}");
    assert!(!is_fine && said.contains(&names), "{said}");
    let (_, said) = asks("repair");
    assert!(said.contains("shard 0: 0 rows differ"), "{said}");
    assert!(said.contains("shard 1: 1 rows differ"), "{said}");
}
