//! `serve`: the sale over HTTP.
//!
//! ```text
//! GET    /api/products/{sku}/availability     POST /api/reserve        GET    /api/reservations/{id}
//! GET    /api/products/{sku}/stream (SSE)     POST /api/checkout       DELETE /api/reservations/{id}
//! GET    /livez /readyz /metrics              GET POST /api/admin/...  see `admin`
//! ```
//!
//! HTTP/1.1 on hyper, without a framework: the availability read is one look at the engine's snapshot, and everything
//! else waits for the engine's decision, which is durable before it is answered. [`Server`] runs in a process of its own
//! or inside the demo.

mod admin;
mod app;
mod availability;
mod body;
mod cart;
mod catalogue;
mod checkout;
mod connection;
mod depletion;
mod metrics;
mod peer;
mod problem;
mod reservations;
mod reserve;
mod router;
mod stream;

use crate::cli::{SkuArg, duration};
use crate::engine::Handle;
use crate::payment::{PaymentGateway, SimulatedGateway};
use crate::sale::{self, Bounds, Terms};
use crate::shutdown::Signals;
use crate::token::Secrets;
use anyhow::{Context, Result, bail};
use app::App;
use depletion::Depletion;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// How long connections may take to finish at shutdown, and then the engine.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4_096;

/// `flash-sale serve`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The journal directory; it is made if need be, and continued if it holds a sale
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// A SKU and its units; repeat for more
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
    /// Requests that may be in line, rounded up to a power of two; more are answered 429
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    queue: u32,
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

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: &Args) -> Result<()> {
    let secrets = Secrets::from_env(args.insecure_dev, args.listen.ip())?;
    let terms = Terms {
        hold: args.hold,
        per_user: args.per_user,
        closed: args.closed,
    };
    let bounds = Bounds {
        queue: args.queue as usize,
        clock_jump_max: args.clock_jump_max,
    };
    let engine = sale::open(&args.data, &args.sku, &terms, &bounds)?;
    let config = Config {
        listen: args.listen,
        threads: args.threads,
        connections_max: args.connections_max,
        secrets,
        gateway: Arc::new(SimulatedGateway::new(args.payment_latency)),
    };
    let server = match Server::start(engine.handle(), config) {
        Ok(server) => server,
        Err(error) => {
            engine.shutdown(DRAIN_TIME);
            return Err(error);
        }
    };
    for warning in engine.handle().health().warnings {
        eprintln!("warning: {warning}");
    }
    // Caught before anybody can know that we listen.
    let signals = {
        let _inside = server.runtime().enter();
        Signals::catch()?
    };
    println!("listening on http://{}", server.address());
    server.runtime().block_on(signals.first())?;
    eprintln!("shutting down");
    server.stop();
    let report = engine.shutdown(DRAIN_TIME);
    if !report.is_clean {
        let why = report.halted.unwrap_or_else(|| "it took too long".into());
        bail!("the engine did not end in good order: {why}");
    }
    Ok(())
}

/// How to serve.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) threads: Option<NonZeroUsize>,
    pub(crate) connections_max: u32,
    pub(crate) secrets: Secrets,
    pub(crate) gateway: Arc<dyn PaymentGateway>,
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
    pub(crate) fn start(handle: Handle, config: Config) -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        if let Some(threads) = config.threads {
            builder.worker_threads(threads.get());
        }
        let runtime = builder
            .thread_name("http")
            .enable_all()
            .build()
            .context("can't start the server's threads")?;
        let listener = listen(config.listen).with_context(|| {
            format!(
                "can't listen on {}: take another --listen, or port 0 for a free one",
                config.listen
            )
        })?;
        let address = listener.local_addr()?;
        let app = Arc::new(App::new(handle, config.secrets, config.gateway));
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
            config.connections_max,
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
