//! The demo from beginning to end, small: sold out, proved, and a report that says so.

mod common;

use common::flash_sale;
use serde_json::Value;

#[test]
fn a_demo_sells_out_and_reports_what_it_proved() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let report_dir = dir.path().join("report");
    let journal = dir.path().join("journal");
    let output = flash_sale()
        .args([
            "demo",
            "--units",
            "300",
            "--hold",
            "1s",
            "--duration",
            "12s",
            "--reads",
            "500",
        ])
        .arg("--report-dir")
        .arg(&report_dir)
        .arg("--data")
        .arg(&journal)
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");

    let json = std::fs::read(report_dir.join("report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&json).expect("JSON");
    for (member, expected) in [
        ("units", 300),
        ("sold", 300),
        ("reserved", 0),
        ("available", 0),
        ("oversell_count", 0),
    ] {
        assert_eq!(report[member], expected, "{member}");
    }
    for kind in ["reads", "reserve", "checkout"] {
        for figure in [
            "count", "rps", "p50_ms", "p95_ms", "p99_ms", "max_ms", "errors",
        ] {
            assert!(report[kind][figure].is_number(), "{kind}.{figure}");
        }
    }
    assert!(report["refusals"]["sold_out"].as_u64() > Some(0));
    assert!(report["receipts"]["reservations"].as_u64() >= Some(300));
    assert_eq!(report["receipts"]["orders"], 300);
    assert_eq!(report["receipts"]["missing"], 0);
    assert_eq!(report["audit"]["ok"], true);
    assert!(report["audit"]["events"].as_u64() > Some(600));
    let digest = report["audit"]["digest"].as_str().expect("a digest");

    let audit = flash_sale()
        .args(["audit", "--json"])
        .arg(&journal)
        .output()
        .expect("starts");
    assert!(audit.status.success());
    let audit: Value = serde_json::from_slice(&audit.stdout).expect("JSON");
    assert_eq!(
        audit["digest"], digest,
        "the journal that is kept is the one that was audited"
    );

    let page = std::fs::read_to_string(report_dir.join("report.html")).expect("a page");
    assert_eq!(page.matches("<svg").count(), 3);
    std::fs::remove_file(report_dir.join("report.html")).expect("removes");
    let again = flash_sale()
        .arg("report")
        .arg(report_dir.join("report.json"))
        .status();
    assert!(again.expect("starts").success());
    let anew = std::fs::read_to_string(report_dir.join("report.html")).expect("a page");
    assert_eq!(anew, page, "the page is made of the JSON alone");
}
