//! `serve`: the sale over HTTP.
//!
//! ```text
//! GET    /api/products/{sku}/availability     POST /api/reserve        GET    /api/reservations/{id}
//! GET    /api/products/{sku}/stream (SSE)     POST /api/checkout       DELETE /api/reservations/{id}
//! GET    /livez /readyz /metrics              GET POST /api/admin/...  see `admin`
//! ```
//!
//! HTTP/1.1 on hyper, without a framework: the availability read is one look at a snapshot, and everything else waits for a
//! decision, which is durable before it is answered. [`Server`] runs in a process of its own or inside the demo.
//!
//! | `--role` | decides | sales over HTTP | |
//! |---|---|---|---|
//! | `all` | here | yes | one process, with `--ingest` also for what others ask through Kafka |
//! | `writer` | here | no, from Kafka | shows what is so, its health and metrics |
//! | `api` | its writers | yes | stateless: any number of them |

mod admin;
mod app;
mod availability;
#[cfg(feature = "kafka")]
mod away;
mod body;
mod cart;
mod catalogue;
mod checkout;
mod connection;
mod depletion;
mod desk;
mod metrics;
mod peer;
mod problem;
mod reservations;
mod reserve;
mod router;
mod stream;

use crate::cli::{SkuArg, duration};
use crate::engine::{Engine, Handle, State};
use crate::ingest::{Feed, KafkaUrl};
use crate::log::{Kept, Stop};
use crate::payment::{PaymentGateway, SimulatedGateway};
use crate::sale::{self, Bounds, Terms};
use crate::shared_cache::RedisUrl;
use crate::shutdown::Signals;
use crate::token::Secrets;
use anyhow::{Context, Result, bail};
use app::App;
use depletion::Depletion;
pub(crate) use desk::Desk;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
#[cfg(feature = "kafka")]
use {crate::log::Log, anyhow::ensure};

/// How long connections may take to finish at shutdown, and then the engine.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// How often a server looks whether its engine has halted.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4_096;
/// Requests in line for an engine.
const QUEUE: u32 = 65_536;

/// `flash-sale serve`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, env = "FLASH_SALE_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    kept: Kept,
    /// A Redis that stock and reservations are written through to, for readers in other processes
    #[arg(
        long,
        value_name = "URL",
        env = "FLASH_SALE_CACHE",
        hide_env_values = true,
        required_if_eq("role", "api")
    )]
    cache: Option<RedisUrl>,
    /// What this process does of a sale on many machines
    #[arg(long, value_enum, default_value_t = Role::All)]
    role: Role,
    /// A Kafka cluster between API nodes and writers, prepared by `init`
    #[arg(long, value_name = "URL", env = "FLASH_SALE_INGEST", required_if_eq_any([("role", "api"), ("role", "writer")]))]
    ingest: Option<KafkaUrl>,
    /// A writer's share of the SKUs, which is its partition of the requests
    #[arg(long, default_value_t = 0)]
    shard: u16,
    /// An API node's number, which is its partition of the replies; no two have the same
    #[arg(long, default_value_t = 0)]
    node: u16,
    /// A SKU and its units; repeat for more. Of several writers each takes those of its own share
    #[arg(long, value_name = "NAME=UNITS")]
    sku: Vec<SkuArg>,
    /// How long a reservation holds its units
    #[arg(long, default_value = "120s", value_parser = duration)]
    hold: Duration,
    /// Units of a SKU per user; 0 for no limit
    #[arg(long, default_value_t = 1)]
    per_user: u32,
    /// Leave the sale of a new SKU closed until an operator opens it
    #[arg(long)]
    closed: bool,
    /// Requests that may be in line; more are answered 429. By default 65536, rounded up to a power of two; of an API node
    /// 8192, and its last quarter takes no reservations, only what was begun
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    queue: Option<u32>,
    /// How far the clock may be ahead of a journal with live holds; further, and the start is refused, because these
    /// holds would all lapse at once
    #[arg(long, default_value = "1h", value_parser = duration)]
    clock_jump_max: Duration,
    /// Server threads; by default one per core
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Connections at once
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections_max: u32,
    /// How long the simulated payment provider takes
    #[arg(long, default_value = "20ms", value_parser = duration)]
    payment_latency: Duration,
    /// Run without secrets in the environment, on a loopback address only
    #[arg(long)]
    insecure_dev: bool,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Answers HTTP and decides
    All,
    /// Answers HTTP; writers decide
    Api,
    /// Decides what API nodes ask
    Writer,
}

impl Args {
    fn config(&self, feed: Option<Arc<Feed>>) -> Result<Config> {
        Ok(Config {
            listen: self.listen,
            connections_max: self.connections_max,
            secrets: Secrets::from_env(self.insecure_dev, self.listen.ip())?,
            gateway: Arc::new(SimulatedGateway::new(self.payment_latency)),
            feed,
            takes_changes: self.role != Role::Writer,
        })
    }
}

/// Serves until SIGTERM or SIGINT, or until another writer has taken the role.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = runtime(args.threads)?;
    let signals = {
        let _inside = runtime.enter();
        Signals::catch()?
    };
    match args.role {
        Role::Api => run_api(args, runtime, signals),
        Role::All | Role::Writer => run_engine(args, runtime, signals),
    }
}

/// An API node: what it needs, others keep.
fn run_api(args: &Args, runtime: Runtime, mut signals: Signals) -> Result<()> {
    let server = Server::start(runtime, desk_away(args)?, args.config(None)?)?;
    println!("listening on http://{}", server.address());
    server.runtime().block_on(signals.first())?;
    eprintln!("shutting down");
    server.stop();
    Ok(())
}

#[cfg(feature = "kafka")]
fn desk_away(args: &Args) -> Result<Desk> {
    let (Log::Postgres(store), Some(ingest), Some(cache)) =
        (args.kept.log()?, &args.ingest, &args.cache)
    else {
        bail!("an API node takes --store postgres://.., --cache and --ingest");
    };
    ensure!(
        args.sku.is_empty(),
        "--sku is for writers: an API node sells what they have defined"
    );
    let away = desk::Away::start(ingest, (args.node, args.queue), &store, cache)?;
    Ok(Desk::Away(away))
}

#[cfg(not(feature = "kafka"))]
fn desk_away(args: &Args) -> Result<Desk> {
    match &args.ingest {
        Some(ingest) => ingest.missing(),
        None => bail!("an API node takes --ingest"),
    }
}

fn run_engine(args: &Args, runtime: Runtime, mut signals: Signals) -> Result<()> {
    let terms = Terms {
        hold: args.hold,
        per_user: args.per_user,
        closed: args.closed,
    };
    let bounds = Bounds {
        queue: args.queue.unwrap_or(QUEUE) as usize,
        clock_jump_max: args.clock_jump_max,
        cache: args.cache.clone(),
        ingest: args.ingest.clone(),
        shard: args.shard,
    };
    // What can't be is said before the role is waited for.
    let mut config = args.config(None)?;
    let log = args.kept.log()?;
    let opening = {
        let (log, skus) = (log.clone(), args.sku.clone());
        move |waits| sale::open(&log, &skus, &terms, &bounds, waits)
    };
    log.says_that_it_waits();
    let Some(engine) = runtime.block_on(unless_asked_to_end(&mut signals, opening))? else {
        return Ok(());
    };
    let handle = engine.handle();
    let hints = args.cache.as_ref();
    let hints = hints.map(|cache| cache.hint(handle.clone(), args.shard));
    let hints = hints.transpose();
    let started = hints.and_then(|hints| {
        let ingest = args.ingest.as_ref();
        let feed = ingest.map(|ingest| ingest.feed(handle.clone(), args.shard));
        let feed = feed.transpose()?.map(Arc::new);
        config.feed.clone_from(&feed);
        let server = Server::start(runtime, Desk::Here(handle.clone()), config)?;
        Ok((hints, feed, server))
    });
    let (_hints, feed, server) = match started {
        Ok(started) => started,
        Err(error) => {
            engine.shutdown(DRAIN_TIME);
            return Err(error);
        }
    };
    for warning in handle.health().warnings {
        eprintln!("warning: {warning}");
    }
    println!("listening on http://{}", server.address());
    server.runtime().block_on(async {
        tokio::select! {
            caught = signals.first() => caught,
            () = halted(&handle, feed.as_deref(), log.is_shared()) => Ok(()),
        }
    })?;
    eprintln!("shutting down");
    server.stop();
    let unfed = feed.as_ref().and_then(|feed| feed.halted());
    if let Some(feed) = feed {
        feed.stop();
    }
    let report = engine.shutdown(DRAIN_TIME);
    if !report.is_clean {
        let why = report.halted.unwrap_or_else(|| "it took too long".into());
        bail!("the engine did not end in good order: {why}");
    }
    unfed.map_or(Ok(()), |why| bail!("no more requests can be taken: {why}"))
}

/// Opens the engine, which may wait long for the writer's role; `None` if a signal came first.
async fn unless_asked_to_end<F>(signals: &mut Signals, open: F) -> Result<Option<Engine>>
where
    F: FnOnce(Box<dyn FnOnce(Stop) + Send>) -> Result<Engine> + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    let waits = Box::new(move |stop| {
        // Whoever would end the wait may have gone.
        let _ = tell.send(stop);
    });
    let mut opening = tokio::task::spawn_blocking(move || open(waits));
    tokio::select! {
        opened = &mut opening => opened?.map(Some),
        caught = signals.first() => {
            caught?;
            if let Ok(stop) = told.await {
                stop();
            }
            if let Ok(engine) = opening.await? {
                engine.shutdown(DRAIN_TIME);
            }
            Ok(None)
        }
    }
}

/// When what feeds the engine has halted; or the engine itself, if other machines can go on with its log: then this one makes
/// way, and follows once it is restarted.
async fn halted(handle: &Handle, feed: Option<&Feed>, is_shared: bool) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    while !(is_shared && matches!(handle.health().state, State::Halted(_)))
        && feed.is_none_or(|feed| feed.halted().is_none())
    {
        look.tick().await;
    }
}

/// The threads of a server; by default one per core.
pub(crate) fn runtime(threads: Option<NonZeroUsize>) -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.get());
    }
    builder
        .thread_name("http")
        .enable_all()
        .build()
        .context("can't start the server's threads")
}

/// How to serve.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) connections_max: u32,
    pub(crate) secrets: Secrets,
    pub(crate) gateway: Arc<dyn PaymentGateway>,
    /// What brings requests from Kafka, if anything does.
    pub(crate) feed: Option<Arc<Feed>>,
    /// Whether sales go through this server.
    pub(crate) takes_changes: bool,
}

/// A server at work.
pub(crate) struct Server {
    address: SocketAddr,
    app: Arc<App>,
    runtime: Runtime,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens; requests are answered from now on.
    pub(crate) fn start(runtime: Runtime, desk: Desk, config: Config) -> Result<Self> {
        let listener = listen(config.listen).with_context(|| {
            format!(
                "can't listen on {}: take another --listen, or port 0 for a free one",
                config.listen
            )
        })?;
        let address = listener.local_addr()?;
        let connections_max = config.connections_max;
        let app = Arc::new(App::new(desk, config));
        let watched = app.clone();
        runtime.spawn(async move { Depletion::watch(&watched).await });
        let (stop, stopped) = watch::channel(false);
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let serving = runtime.spawn(connection::serve(
            listener,
            app.clone(),
            connections_max,
            stopped,
            DRAIN_TIME,
        ));
        Ok(Self {
            address,
            app,
            runtime,
            stop,
            serving,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its threads.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Takes no more connections, finishes the requests that are under way, and ends.
    pub(crate) fn stop(self) {
        self.app.drain();
        let _ = self.stop.send(true);
        // A panic in the accept loop has been printed; there is nothing left to drain then.
        let _ = self.runtime.block_on(self.serving);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
