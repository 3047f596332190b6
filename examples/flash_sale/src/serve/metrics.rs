//! What the server counts about itself, and `/metrics` in the Prometheus text format.
//!
//! Counters are relaxed atomics: a scrape sees each of them at some moment of late, not all at one.

use super::app::App;
#[cfg(feature = "kafka")]
use super::desk::Away;
use super::desk::Desk;
use crate::engine::{Handle, State};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper edges of the latency buckets, in microseconds.
const EDGES_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000, 100_000, 150_000, 250_000, 500_000,
    1_000_000,
];
/// Statuses that we answer; any other counts under the last.
const STATUSES: [u16; 19] = [
    200, 201, 400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 421, 429, 500, 503, 504, 100, 0,
];

/// A group of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Route {
    Availability,
    Reserve,
    Checkout,
    Reservation,
    Stream,
    Admin,
    Other,
}

const ROUTES: [(Route, &str); 7] = [
    (Route::Availability, "availability"),
    (Route::Reserve, "reserve"),
    (Route::Checkout, "checkout"),
    (Route::Reservation, "reservation"),
    (Route::Stream, "stream"),
    (Route::Admin, "admin"),
    (Route::Other, "other"),
];

#[derive(Default)]
#[repr(align(128))] // the routes' counters don't share cache lines
struct RouteCounters {
    by_status: [AtomicU64; STATUSES.len()],
    by_latency: [AtomicU64; EDGES_US.len() + 1],
    latency_us: AtomicU64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Metrics {
    routes: [RouteCounters; ROUTES.len()],
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
}

impl Metrics {
    /// Counts an answer.
    pub(crate) fn count(&self, route: Route, status: u16, took: Duration) {
        let counters = &self.routes[route as usize];
        let at = STATUSES.iter().position(|&known| known == status);
        counters.by_status[at.unwrap_or(STATUSES.len() - 1)].fetch_add(1, Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = EDGES_US.partition_point(|&edge| edge < us);
        counters.by_latency[bucket].fetch_add(1, Relaxed);
        counters.latency_us.fetch_add(us, Relaxed);
    }
}

/// The text of `/metrics`.
pub(crate) fn render(app: &App) -> String {
    let mut out = String::with_capacity(8_192);
    render_stock(app, &mut out);
    match &*app.desk {
        Desk::Here(handle) => render_engine(handle, &mut out),
        #[cfg(feature = "kafka")]
        Desk::Away(away) => render_away(away, &mut out),
    }
    for (name, help, value) in app.feed.iter().flat_map(|feed| feed.gauges()) {
        kind(&mut out, name, "gauge", help);
        line(&mut out, name, "", value);
    }
    render_http(&app.metrics, &mut out);
    out
}

/// Writing to a String can't fail.
fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{labels} {value}");
}

fn kind(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn render_stock(app: &App, out: &mut String) {
    let health = app.health();
    kind(
        out,
        "flash_sale_up",
        "gauge",
        "1 while decisions are made, 0 when halted",
    );
    let up = u8::from(!matches!(health.state, State::Halted(_)));
    line(out, "flash_sale_up", "", up);
    kind(out, "queue_depth", "gauge", "Commands in line");
    line(out, "queue_depth", "", app.desk.queue_depth());
    kind(
        out,
        "oversell_count",
        "gauge",
        "Units reserved or sold beyond the total; always 0",
    );
    let mut stocks = Vec::new();
    let mut oversold = 0;
    let names = app.catalogue.names();
    for (id, name) in names.iter() {
        if let Some(stock) = app.desk.availability(id) {
            oversold += (stock.reserved + stock.sold).saturating_sub(stock.total);
            let name = name.as_str().replace('\\', "\\\\").replace('"', "\\\"");
            stocks.push((name, stock, app.depletion.rate(id)));
        }
    }
    line(out, "oversell_count", "", oversold);
    kind(out, "stock_units", "gauge", "Units of a SKU by state");
    for (name, stock, _) in &stocks {
        for (state, units) in [
            ("available", stock.available),
            ("reserved", stock.reserved),
            ("sold", stock.sold),
            ("total", stock.total),
        ] {
            let labels = format!("{{sku=\"{name}\",state=\"{state}\"}}");
            line(out, "stock_units", &labels, units);
        }
    }
    kind(
        out,
        "depletion_rate",
        "gauge",
        "Units per second that left available, over the last 10 s",
    );
    for (name, _, rate) in &stocks {
        line(out, "depletion_rate", &format!("{{sku=\"{name}\"}}"), rate);
    }
}

fn render_engine(handle: &Handle, out: &mut String) {
    let stats = handle.stats();
    kind(
        out,
        "decisions_total",
        "counter",
        "Commands decided, by outcome",
    );
    line(
        out,
        "decisions_total",
        "{outcome=\"accepted\"}",
        stats.accepted,
    );
    for (code, count) in &stats.refused {
        let labels = format!("{{outcome=\"{code}\"}}");
        line(out, "decisions_total", &labels, count);
    }
    render_capacity(stats.queue_capacity, out);
    kind(out, "batches_total", "counter", "Durable batches");
    line(out, "batches_total", "", stats.batches);
    kind(out, "events_total", "counter", "Events in them");
    line(out, "events_total", "", stats.events);
    kind(
        out,
        "commit_seconds",
        "gauge",
        "Durable commits, since the start",
    );
    for (quantile, took) in [
        ("0.5", stats.commit.p50),
        ("0.95", stats.commit.p95),
        ("0.99", stats.commit.p99),
        ("1", stats.commit.max),
    ] {
        let labels = format!("{{quantile=\"{quantile}\"}}");
        line(out, "commit_seconds", &labels, took.as_secs_f64());
    }
}

fn render_capacity(capacity: u64, out: &mut String) {
    kind(
        out,
        "queue_capacity",
        "gauge",
        "Commands that may be in line",
    );
    line(out, "queue_capacity", "", capacity);
}

#[cfg(feature = "kafka")]
fn render_away(away: &Away, out: &mut String) {
    render_capacity(away.queue_capacity().into(), out);
    kind(
        out,
        "kafka_lag",
        "gauge",
        "Requests in each partition that wait",
    );
    for (partition, lag) in away.lags().into_iter().enumerate() {
        let labels = format!("{{partition=\"{partition}\"}}");
        line(out, "kafka_lag", &labels, lag);
    }
    let reads = away.reads();
    kind(
        out,
        "cache_reads_total",
        "counter",
        "This node's reads of Redis, by what they found",
    );
    for (outcome, count) in [
        ("hit", reads.hits),
        ("miss", reads.misses),
        ("error", reads.errors),
        ("failure", reads.failures),
    ] {
        let labels = format!("{{outcome=\"{outcome}\"}}");
        line(out, "cache_reads_total", &labels, count);
    }
}

fn render_http(metrics: &Metrics, out: &mut String) {
    kind(out, "http_connections", "gauge", "Open connections");
    line(
        out,
        "http_connections",
        "",
        metrics.connections.load(Relaxed),
    );
    kind(
        out,
        "http_connections_refused_total",
        "counter",
        "Connections beyond the limit",
    );
    let refused = metrics.connections_refused.load(Relaxed);
    line(out, "http_connections_refused_total", "", refused);
    kind(
        out,
        "http_requests_total",
        "counter",
        "Answers by route and status",
    );
    for (route, name) in ROUTES {
        let counters = &metrics.routes[route as usize];
        for (status, count) in STATUSES.iter().zip(&counters.by_status) {
            let count = count.load(Relaxed);
            if count > 0 {
                let labels = format!("{{route=\"{name}\",status=\"{status}\"}}");
                line(out, "http_requests_total", &labels, count);
            }
        }
    }
    kind(
        out,
        "http_request_seconds",
        "histogram",
        "From the request's head to the answer",
    );
    for (route, name) in ROUTES {
        let counters = &metrics.routes[route as usize];
        let mut so_far = 0;
        for (at, count) in counters.by_latency.iter().enumerate() {
            so_far += count.load(Relaxed);
            let edge = EDGES_US
                .get(at)
                .map_or("+Inf".to_owned(), |&us| seconds(us));
            let labels = format!("{{route=\"{name}\",le=\"{edge}\"}}");
            line(out, "http_request_seconds_bucket", &labels, so_far);
        }
        let labels = format!("{{route=\"{name}\"}}");
        let sum = seconds(counters.latency_us.load(Relaxed));
        line(out, "http_request_seconds_sum", &labels, sum);
        line(out, "http_request_seconds_count", &labels, so_far);
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_route_status_and_latency() {
        let metrics = Metrics::default();
        metrics.count(Route::Reserve, 201, Duration::from_micros(100));
        metrics.count(Route::Reserve, 409, Duration::from_secs(9));
        let mut out = String::new();
        render_http(&metrics, &mut out);
        for expected in [
            "http_requests_total{route=\"reserve\",status=\"201\"} 1\n",
            "http_request_seconds_bucket{route=\"reserve\",le=\"0.000100\"} 1\n",
            "http_request_seconds_bucket{route=\"reserve\",le=\"+Inf\"} 2\n",
            "http_request_seconds_sum{route=\"reserve\"} 9.000100\n",
        ] {
            assert!(out.contains(expected), "{expected} in {out}");
        }
    }
}
