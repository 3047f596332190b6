//! `report.html`: one page, no scripts, nothing to load.

use super::plot::{Plot, Series, number};
use super::{Report, Sample};
use crate::load::record::Figures;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::with_capacity(64 * 1024);
    let name = escape(&report.sku_id);
    // Writing to a String can't fail.
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{name}: {} of {} sold, {} oversold</title><style>{STYLE}</style></head><body><main>",
        number(int(report.sold)),
        number(int(report.units)),
        report.oversell_count
    );
    head(&mut out, report);
    tiles(&mut out, report);
    for plot in plots(report, &times(report)) {
        out.push_str(&plot.render());
    }
    latencies(&mut out, report);
    out.push_str("<div class=\"two\">");
    refusals(&mut out, report);
    proof(&mut out, report);
    out.push_str("</div>");
    footer(&mut out, report);
    out.push_str("</main></body></html>\n");
    out
}

fn head(out: &mut String, report: &Report) {
    let after = report
        .sold_out_after_s
        .map_or("not sold out".to_owned(), |seconds| {
            format!("sold out after {seconds:.1} s")
        });
    let (class, verdict) = if report.is_proved() {
        (
            "",
            "Proved from the journal: nothing oversold, nothing lost",
        )
    } else {
        (" bad", "NOT proved: see the audit below")
    };
    let _ = write!(
        out,
        "<header><h1>{} units of {}, {after}</h1><p class=\"lead\">{} reservations and {} orders were answered over HTTP in \
         {:.0} s.</p><div class=\"verdict{class}\">{verdict}</div></header>",
        number(int(report.units)),
        escape(&report.sku_id),
        number(int(report.receipts.reservations)),
        number(int(report.receipts.orders)),
        report.seconds,
    );
}

fn tiles(out: &mut String, report: &Report) {
    out.push_str("<section class=\"tiles\">");
    for (value, what) in [
        (number(int(report.sold)), "units sold"),
        (number(int(report.oversell_count)), "units oversold"),
        (
            number(int(report.receipts.missing)),
            "answers missing in the journal",
        ),
        (
            number(int(report.receipts.lapsed)),
            "holds lapsed, units back on sale",
        ),
        (number(report.reads.rps), "reads per second"),
        (number(report.reserve.rps), "reserves per second"),
        (
            format!("{} ms", number(round(report.reserve.p95_ms))),
            "reserve, 95th percentile",
        ),
        (
            format!("{:.2} ms", report.engine.commit_p50_ms),
            "durable commit, median",
        ),
    ] {
        let _ = write!(
            out,
            "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>"
        );
    }
    out.push_str("</section>");
}

fn times(report: &Report) -> Vec<f64> {
    report.samples.iter().map(|sample| sample.at_s).collect()
}

fn plots<'a>(report: &Report, times: &'a [f64]) -> [Plot<'a>; 3] {
    let values = |of: fn(&Sample) -> f64| report.samples.iter().map(of).collect::<Vec<f64>>();
    let series = |name, class, of| Series {
        name,
        class,
        values: values(of),
    };
    let mark = report.sold_out_after_s.map(|at| (at, "sold out"));
    [
        Plot {
            title: "Stock",
            unit: "units",
            note: "Sold, held and available units always add up to the total. Lapsed holds go back on sale.",
            times,
            series: vec![
                series("sold", "sold", |s| int(s.sold)),
                series("held", "held", |s| int(s.reserved)),
                series("available", "free", |s| int(s.available)),
            ],
            is_stacked: true,
            mark,
        },
        Plot {
            title: "Requests",
            unit: "per second",
            note: "Answered requests of every kind, refusals included.",
            times,
            series: vec![
                series("availability reads", "reads", |s| s.reads_rps),
                series("reserves", "reserve", |s| s.reserve_rps),
                series("checkouts", "checkout", |s| s.checkout_rps),
            ],
            is_stacked: false,
            mark,
        },
        Plot {
            title: "Latency, 95th percentile",
            unit: "ms",
            note: "From the moment a request was due to its answer; reserves and checkouts are durable by then. \
                   A checkout takes the payment provider's time as well.",
            times,
            series: vec![
                series("availability reads", "reads", |s| gap(s.reads_p95_ms)),
                series("reserves", "reserve", |s| gap(s.reserve_p95_ms)),
                series("checkouts", "checkout", |s| gap(s.checkout_p95_ms)),
            ],
            is_stacked: false,
            mark,
        },
    ]
}

fn latencies(out: &mut String, report: &Report) {
    out.push_str(
        "<section class=\"card\"><h2>Figures</h2><div class=\"scroll\"><table><tr><th></th><th>count</th><th>per second</th>\
         <th>p50 ms</th><th>p95 ms</th><th>p99 ms</th><th>max ms</th><th>errors</th></tr>",
    );
    let row = |out: &mut String, name: &str, figures: &Figures| {
        let _ = write!(
            out,
            "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{:.2}</td><td>{:.2}</td><td>{:.2}</td><td>{:.2}</td><td>{}</td></tr>",
            number(int(figures.count)),
            number(figures.rps.round()),
            figures.p50_ms,
            figures.p95_ms,
            figures.p99_ms,
            figures.max_ms,
            figures.errors
        );
    };
    row(out, "availability reads", &report.reads);
    row(out, "reserve", &report.reserve);
    row(out, "checkout", &report.checkout);
    out.push_str("</table></div></section>");
}

fn refusals(out: &mut String, report: &Report) {
    out.push_str("<section class=\"card\"><h2>Refusals by code</h2><table>");
    if report.refusals.is_empty() {
        out.push_str("<tr><td>none</td></tr>");
    }
    for (code, count) in report.refusals.iter().chain(&report.failures) {
        let _ = write!(
            out,
            "<tr><td><code>{}</code></td><td>{}</td></tr>",
            escape(code),
            number(int(*count))
        );
    }
    out.push_str("</table></section>");
}

fn proof(out: &mut String, report: &Report) {
    let audit = &report.audit;
    let _ = write!(
        out,
        "<section class=\"card\"><h2>Audit of the journal</h2><table>\
         <tr><td>laws</td><td>{}</td></tr><tr><td>events</td><td>{}</td></tr><tr><td>batches</td><td>{}</td></tr>\
         <tr><td>durable commit, p50 / p99</td><td>{:.2} / {:.2} ms</td></tr></table><p>Digest <code>{}</code></p>",
        if audit.ok { "all hold" } else { "BROKEN" },
        number(int(audit.events)),
        number(int(audit.batches)),
        report.engine.commit_p50_ms,
        report.engine.commit_p99_ms,
        escape(&audit.digest)
    );
    for breach in &audit.breaches {
        let _ = write!(out, "<p>{}</p>", escape(breach));
    }
    out.push_str("</section>");
}

fn footer(out: &mut String, report: &Report) {
    let settings = &report.settings;
    let _ = write!(
        out,
        "<footer>Started {}. Offered: {} reads and {} reserves per second, open loop. Holds of {:.0} s, {} per user, {:.0} % of \
         the buyers never pay. Server, crowd and journal share {} cores.",
        escape(&report.started_at),
        number(settings.reads_per_s),
        number(settings.reserves_per_s),
        settings.hold_s,
        settings.per_user,
        settings.abandon * 100.0,
        settings.cores
    );
    for warning in &report.warnings {
        let _ = write!(out, " <b>{}</b>", escape(warning));
    }
    out.push_str("</footer>");
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn int(value: u64) -> f64 {
    value as f64
}

/// No request, no latency.
fn gap(latency_ms: f64) -> f64 {
    if latency_ms > 0.0 {
        latency_ms
    } else {
        f64::NAN
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stands_alone_and_escapes_what_it_shows() {
        let report = Report {
            sku_id: "<b>\"&".into(),
            samples: vec![Sample::default(); 2],
            ..Report::default()
        };
        let page = render(&report);
        assert!(page.contains("&lt;b&gt;&quot;&amp;"));
        assert!(!page.contains("<b>\"&"));
        for outside in ["http://", "https://", "<script", "src=", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
