//! What a metrics recorder and a log hear of an engine: every documented name, with the right value.
//! `cargo test --features metrics,tracing --test telemetry`

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use stockade::engine::{CommandError, Engine, Handle};
use stockade::store::{
    MemoryLog, MemoryStore, OpenRequest, Progress, Recovered, Replica, Store, StoreError,
};
use stockade::types::{
    Batch, Confirm, DefineSku, Gate, ManualClock, Query, Reserve, SetGate, SkuId, SkuName,
    Timestamp, UserId,
};
use tracing::field::{Field, Visit};
use tracing::{Level, Subscriber, span};

type TestResult = Result<(), Box<dyn std::error::Error>>;

const ADMIN: UserId = UserId(1 << 100);
const DOCS: &str = include_str!("../src/engine/telemetry/mod.rs");

/// The one recorder of this process: by name and sorted labels.
#[derive(Default)]
struct Recorder {
    described: Mutex<BTreeMap<String, Option<Unit>>>,
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    histograms: Mutex<BTreeMap<String, Arc<Samples>>>,
}

#[derive(Default)]
struct Samples(Mutex<Vec<f64>>);

impl HistogramFn for Samples {
    fn record(&self, value: f64) {
        self.0.lock().expect("no panic").push(value);
    }
}

fn text(key: &Key) -> String {
    let labels: BTreeSet<String> = key
        .labels()
        .map(|label| format!("{}={}", label.key(), label.value()))
        .collect();
    let labels: Vec<String> = labels.into_iter().collect();
    format!("{}{{{}}}", key.name(), labels.join(","))
}

fn meter<T: Default>(meters: &Mutex<BTreeMap<String, Arc<T>>>, key: &Key) -> Arc<T> {
    let mut meters = meters.lock().expect("no panic");
    Arc::clone(meters.entry(text(key)).or_default())
}

impl Recorder {
    fn describe(&self, key: &KeyName, unit: Option<Unit>) {
        let mut described = self.described.lock().expect("no panic");
        described.insert(key.as_str().to_owned(), unit);
    }

    fn counter(&self, key: &str) -> Option<u64> {
        let counters = self.counters.lock().expect("no panic");
        Some(counters.get(key)?.load(Ordering::SeqCst))
    }

    fn gauge(&self, key: &str) -> Option<f64> {
        let gauges = self.gauges.lock().expect("no panic");
        Some(f64::from_bits(gauges.get(key)?.load(Ordering::SeqCst)))
    }

    fn samples(&self, key: &str) -> Option<Vec<f64>> {
        let histograms = self.histograms.lock().expect("no panic");
        Some(histograms.get(key)?.0.lock().expect("no panic").clone())
    }

    /// Of one engine.
    fn names(&self, engine: &str) -> BTreeSet<String> {
        let keys = |keys: Vec<String>| {
            keys.into_iter()
                .filter(|key| key.contains(&format!("engine={engine}")))
                .map(|key| key[..key.find('{').expect("labels")].to_owned())
                .collect::<Vec<_>>()
        };
        let counters = keys(
            self.counters
                .lock()
                .expect("no panic")
                .keys()
                .cloned()
                .collect(),
        );
        let gauges = keys(
            self.gauges
                .lock()
                .expect("no panic")
                .keys()
                .cloned()
                .collect(),
        );
        let histograms = keys(
            self.histograms
                .lock()
                .expect("no panic")
                .keys()
                .cloned()
                .collect(),
        );
        counters
            .into_iter()
            .chain(gauges)
            .chain(histograms)
            .collect()
    }
}

impl metrics::Recorder for &'static Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(meter(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(meter(&self.gauges, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(meter(&self.histograms, key))
    }
}

/// The one log of this process.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Line>>,
    spans: AtomicU64,
}

/// An event or a new span, with its fields as text.
#[derive(Debug, Clone)]
struct Line {
    level: Level,
    message: String,
    fields: BTreeMap<&'static str, String>,
}

impl Line {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        if field.name() == "message" {
            self.message = value;
        } else {
            self.fields.insert(field.name(), value);
        }
    }
}

impl Log {
    fn push(&self, level: Level, message: &str, record: impl FnOnce(&mut Line)) {
        let mut line = Line {
            level,
            message: message.to_owned(),
            fields: BTreeMap::new(),
        };
        record(&mut line);
        self.lines.lock().expect("no panic").push(line);
    }

    /// Of one engine, with this message.
    fn lines(&self, engine: &str, message: &str) -> Vec<Line> {
        let lines = self.lines.lock().expect("no panic");
        let ours = |line: &&Line| line.field("engine") == engine && line.message == message;
        lines.iter().filter(ours).cloned().collect()
    }

    #[track_caller]
    fn one(&self, engine: &str, level: Level, message: &str) -> Line {
        let mut lines = self.lines(engine, message);
        assert_eq!(lines.len(), 1, "{message}: {lines:?}");
        let line = lines.remove(0);
        assert_eq!(line.level, level, "{line:?}");
        line
    }
}

impl Subscriber for &'static Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "stockade"
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let metadata = span.metadata();
        self.push(*metadata.level(), metadata.name(), |line| span.record(line));
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn event(&self, event: &tracing::Event<'_>) {
        self.push(*event.metadata().level(), "", |line| event.record(line));
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Recorder and log, installed before the first engine starts.
fn heard() -> (&'static Recorder, &'static Log) {
    static RECORDER: LazyLock<Recorder> = LazyLock::new(Recorder::default);
    static LOG: LazyLock<Log> = LazyLock::new(Log::default);
    static INSTALLED: LazyLock<()> = LazyLock::new(|| {
        metrics::set_global_recorder(&*RECORDER).expect("the first");
        tracing::subscriber::set_global_default(&*LOG).expect("the first");
    });
    LazyLock::force(&INSTALLED);
    (&RECORDER, &LOG)
}

/// The first code word of each row of the documentation's tables that begins with `prefix`.
fn documented(prefix: &str) -> BTreeSet<String> {
    let rows = DOCS.lines().filter_map(|line| line.strip_prefix("//! | `"));
    rows.filter_map(|row| row.split('`').next())
        .filter(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}

fn open_sku(handle: &Handle, name: &str, total: u64) -> SkuId {
    let define = DefineSku::new(ADMIN, SkuName::new(name).expect("a name"), total);
    let sku = handle.define_sku(define).expect("room").wait();
    let sku = sku.expect("defined");
    let open = SetGate::new(ADMIN, sku, Gate::Open);
    handle.set_gate(open).expect("room").wait().expect("opened");
    sku
}

fn reserve(user: u64, sku: SkuId) -> Reserve {
    Reserve::one(UserId::from(user), sku, 1).expect("a cart")
}

#[test]
fn every_documented_metric_is_there_from_the_start_with_its_unit() -> TestResult {
    let (recorder, _) = heard();
    let log = MemoryLog::default();
    let engine = Engine::builder().store(MemoryStore::on(&log)).start()?;
    open_sku(&engine.handle(), "early", 7);
    drop(engine);

    let store = MemoryStore::on(&log);
    let engine = Engine::builder().name("early").store(store).start()?;
    let names = documented("stockade_");
    assert_eq!(names.len(), 12, "{names:?}");
    assert_eq!(recorder.names("early"), names);
    let readme = include_str!("../README.md");
    assert!(
        names
            .iter()
            .all(|name| readme.contains(&format!("`{name}`")))
    );
    let described = recorder.described.lock().expect("no panic").clone();
    assert_eq!(described.keys().cloned().collect::<BTreeSet<_>>(), names);
    for (name, unit) in described {
        let expected = match name.as_str() {
            "stockade_state" => None,
            name if name.ends_with("_seconds") => Some(Unit::Seconds),
            _ => Some(Unit::Count),
        };
        assert_eq!(unit, expected, "{name}");
    }
    let available = "stockade_stock_units{engine=early,sku=early,state=available}";
    assert_eq!(recorder.gauge(available), Some(7.0), "recovered");
    let depletion = "stockade_depletion_total{engine=early,sku=early}";
    assert_eq!(recorder.counter(depletion), Some(0));
    drop(engine);
    Ok(())
}

#[test]
fn metrics_count_what_was_done() -> TestResult {
    let (recorder, _) = heard();
    let builder = Engine::builder().name("counts").ring_capacity(64);
    let engine = builder.start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "SNEAKER", 3);
    let mut held = Vec::new();
    for user in 0..3 {
        held.push(handle.reserve(reserve(user, sku)).expect("room").wait()?);
    }
    let refused = handle.reserve(reserve(3, sku)).expect("room").wait();
    assert!(matches!(refused, Err(CommandError::Refused(_))));
    let confirm = Confirm::unpaid(UserId::from(0), held[0].id);
    let _sold = handle.confirm(confirm).expect("room").wait()?;
    let query = Query::Reservation(held[0].id);
    handle.query(query).expect("room").wait()?;
    assert!(engine.shutdown(Duration::from_secs(10)).is_clean);

    let requests = |outcome| {
        recorder.counter(&format!(
            "stockade_requests_total{{engine=counts,outcome={outcome}}}"
        ))
    };
    assert_eq!(
        requests("accepted"),
        Some(6),
        "define, open, 3 holds, confirm"
    );
    assert_eq!(requests("sold_out"), Some(1));
    assert_eq!(requests("user_limit"), Some(0));
    assert_eq!(requests("query"), Some(1));
    let stats = handle.stats();
    let counter = |name| recorder.counter(&format!("stockade_{name}{{engine=counts}}"));
    assert_eq!(counter("batches_total"), Some(stats.batches));
    assert_eq!(counter("events_total"), Some(stats.events));
    let gauge = |name| recorder.gauge(&format!("stockade_{name}{{engine=counts}}"));
    for (name, value) in [
        ("queue_depth", 0.0),
        ("queue_capacity", 64.0),
        ("oversell_count", 0.0),
        ("state", 2.0),
        ("warnings", 0.0),
    ] {
        assert_eq!(gauge(name), Some(value), "{name}");
    }
    for (state, units) in [("available", 0.0), ("reserved", 2.0), ("sold", 1.0)] {
        let key = format!("stockade_stock_units{{engine=counts,sku=SNEAKER,state={state}}}");
        assert_eq!(recorder.gauge(&key), Some(units), "{state}");
    }
    let depletion = "stockade_depletion_total{engine=counts,sku=SNEAKER}";
    assert_eq!(recorder.counter(depletion), Some(3));
    let samples = |name| recorder.samples(&format!("stockade_{name}{{engine=counts}}"));
    let commits = samples("commit_seconds").expect("is there");
    assert_eq!(commits.len() as u64, stats.batches);
    // One request after the other: each was answered in a batch of its own.
    let batches = samples("batch_seconds").expect("is there");
    assert_eq!(batches.len(), 8);
    let within = |seconds: &f64| (0.0..10.0).contains(seconds);
    assert!(commits.iter().chain(&batches).all(within));
    Ok(())
}

#[test]
fn units_that_come_back_do_not_lower_the_depletion() -> TestResult {
    let (recorder, _) = heard();
    let engine = Engine::builder().name("back").start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "LACES", 9);
    for _ in 0..2 {
        let held = handle.reserve(reserve(1, sku)).expect("room").wait()?;
        let release = stockade::types::Release::new(UserId::from(1), held.id);
        handle.release(release).expect("room").wait()?;
    }
    assert!(engine.shutdown(Duration::from_secs(10)).is_clean);
    let depletion = "stockade_depletion_total{engine=back,sku=LACES}";
    assert_eq!(recorder.counter(depletion), Some(2));
    let available = "stockade_stock_units{engine=back,sku=LACES,state=available}";
    assert_eq!(recorder.gauge(available), Some(9.0));
    Ok(())
}

#[test]
fn a_run_is_logged_from_recovery_to_its_end() -> TestResult {
    let (_, log) = heard();
    let memory = MemoryLog::default();
    let engine = Engine::builder().store(MemoryStore::on(&memory)).start()?;
    let handle = engine.handle();
    open_sku(&handle, "again", 7);
    drop(engine);
    let events = handle.stats().events.to_string();

    let store = MemoryStore::on(&memory);
    let engine = Engine::builder().name("run").store(store).start()?;
    open_sku(&engine.handle(), "more", 7);
    assert!(engine.shutdown(Duration::from_secs(10)).is_clean);
    log.one("run", Level::INFO, "recovery");
    let recovering = log.lines("run", "recovering");
    assert!(!recovering.is_empty() && recovering.len() <= 12);
    let recovered = log.one("run", Level::INFO, "recovered");
    assert_eq!(recovered.field("epoch"), "2");
    assert_eq!(recovered.field("events"), events);
    let started = log.one("run", Level::INFO, "started");
    assert_eq!(started.field("sequence"), events);
    log.one("run", Level::INFO, "draining");
    log.one("run", Level::INFO, "stopped");
    let batches = log.lines("run", "batch");
    let requests = batches
        .iter()
        .filter(|line| line.level == Level::DEBUG && line.field("requests") == "1");
    assert_eq!(requests.count(), 2, "{batches:?}");
    Ok(())
}

/// Fails as it is told to.
struct Moody {
    inner: MemoryStore,
    fail: Arc<AtomicBool>,
    error: fn() -> StoreError,
}

impl Store for Moody {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        let recovered = self.inner.open(request, replica, progress);
        for done in 0..=1_000 {
            progress(Progress {
                done,
                total: Some(1_000),
            });
        }
        recovered
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.fail.load(Ordering::SeqCst) {
            Err((self.error)())
        } else {
            self.inner.commit(batch)
        }
    }
}

fn moody(error: fn() -> StoreError) -> (Moody, Arc<AtomicBool>) {
    let fail = Arc::new(AtomicBool::new(false));
    let store = Moody {
        inner: MemoryStore::new(),
        fail: Arc::clone(&fail),
        error,
    };
    (store, fail)
}

#[test]
fn a_halt_is_an_error_with_its_reason() -> TestResult {
    let (recorder, log) = heard();
    let (store, fail) = moody(|| StoreError::Fatal("the disk is on fire".into()));
    let engine = Engine::builder().name("halts").store(store).start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "doomed", 5);
    let state = "stockade_state{engine=halts}";
    assert_eq!(recorder.gauge(state), Some(0.0));
    fail.store(true, Ordering::SeqCst);
    let outcome = handle.reserve(reserve(1, sku)).expect("room").wait();
    assert_eq!(outcome, Err(CommandError::Unknown));
    assert!(!engine.shutdown(Duration::from_secs(1)).is_clean);
    let halted = log.one("halts", Level::ERROR, "halted");
    assert_eq!(halted.field("reason"), "the disk is on fire");
    assert_eq!(recorder.gauge(state), Some(3.0));
    assert!(log.lines("halts", "stopped").is_empty());
    let percents: Vec<String> = log
        .lines("halts", "recovering")
        .iter()
        .map(|line| line.field("percent").to_owned())
        .collect();
    let tenths = (1..=10).map(|tenth| (tenth * 10).to_string());
    let expected: Vec<String> = std::iter::once(String::new()).chain(tenths).collect();
    assert_eq!(percents, expected, "once at each tenth");
    Ok(())
}

#[test]
fn a_warning_is_logged_when_it_comes_and_when_it_goes_and_a_slow_commit_once() -> TestResult {
    let (recorder, log) = heard();
    let (store, fail) = moody(|| StoreError::Retryable("the network is down".into()));
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)));
    let engine = Engine::builder()
        .name("slow")
        .store(store)
        .clock(clock.clone())
        .start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "patient", 5);
    fail.store(true, Ordering::SeqCst);
    let waiting = handle.reserve(reserve(1, sku)).expect("room");
    while !handle.health().is_degraded() {
        std::thread::yield_now();
    }
    clock.advance(Duration::from_secs(30));
    fail.store(false, Ordering::SeqCst);
    waiting.wait()?;
    assert!(engine.shutdown(Duration::from_secs(10)).is_clean);
    let degraded = log.one("slow", Level::WARN, "degraded");
    assert_eq!(degraded.field("kind"), "commit");
    let warning = degraded.field("warning");
    assert!(warning.contains("the network is down"), "{warning}");
    let lifted = log.one("slow", Level::INFO, "warning lifted");
    assert_eq!(lifted.field("kind"), "commit");
    let slow = log.one("slow", Level::WARN, "slow commit");
    assert_eq!(slow.field("seconds"), "30.0");
    assert_eq!(recorder.gauge("stockade_warnings{engine=slow}"), Some(0.0));
    let commits = recorder.samples("stockade_commit_seconds{engine=slow}");
    let longest = commits.expect("is there").into_iter().fold(0.0, f64::max);
    assert!((longest - 30.0).abs() < 1e-9, "{longest}");
    Ok(())
}
