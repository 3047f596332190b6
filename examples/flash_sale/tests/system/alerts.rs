//! What Prometheus watches is what writers and API nodes tell.

use crate::backends::System;

/// Words of its language, labels, and what it tells by itself.
const NOT_OURS: [&str; 11] = [
    "abs",
    "avg",
    "by",
    "histogram_quantile",
    "le",
    "max",
    "or",
    "rate",
    "sku",
    "sum",
    "up",
];

/// The metrics in an expression: what is neither a selector nor a range, nor a number.
fn metrics_of(expression: &str) -> Vec<String> {
    let mut depth = 0;
    let outside = expression.chars().filter(|c| {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => return depth == 0,
        }
        false
    });
    let outside: String = outside.collect();
    let words = outside.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
        .filter(|word| !NOT_OURS.contains(word))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_that_an_alert_watches_is_told() {
    let _alone = crate::alone();
    let system = System::start();
    let writer = system.writer().listens();
    let node = system.node(0);
    node.reserves("ann");
    let pages = [&writer, &node].map(|server| server.get("/metrics").is(200).body);
    let is_told = |metric: &str| {
        let mut lines = pages.iter().flat_map(|page| page.lines());
        lines.any(|line| {
            let rest = line.strip_prefix(metric);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
    };
    let rules = include_str!("../../prometheus/alerts.yml");
    let expressions: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .collect();
    assert_eq!(expressions.len(), rules.matches("- alert: ").count());
    for expression in &expressions {
        let metrics = metrics_of(expression);
        assert!(
            !metrics.is_empty() || expression.contains("up"),
            "{expression}"
        );
        for metric in metrics {
            assert!(is_told(&metric), "{metric}, of {expression}");
        }
    }
    assert!(expressions.contains(&"max(kafka_lag) > 10000"));
    // A queue has the room that the rule takes its share of.
    for (page, room) in pages.iter().zip(["65536", "8192"]) {
        assert!(
            page.contains(&format!("\nqueue_capacity {room}\n")),
            "{page}"
        );
    }
}
