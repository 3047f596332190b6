//! `flash-sale`: a whole flash sale on [`stockade`], in one program.
//!
//! ```text
//! demo      serve + a crowd + audit + report, the default      rehearse  replay a real order log
//! serve     the sale over HTTP, on a journal directory         audit     verify a journal directory
//! load      an open-loop crowd against a server                report    report.html from a report.json
//! token     a bearer token for one user                        init      tables in PostgreSQL, topics in Kafka
//! repair    rows in PostgreSQL made what the log says          resume    go on after a halt that names it
//! ```
//!
//! Everything that touches the engine goes through [`engine`]; everything that is said over HTTP is in [`serve`].
//! Exit codes: 0 done, 1 failed or a law is broken, 2 the command line is wrong.

mod audit;
mod cli;
mod demo;
mod engine;
mod ingest;
mod init;
mod load;
mod log;
mod oversold;
mod payment;
mod rehearse;
mod repair;
mod report;
mod sale;
mod serve;
mod shared_cache;
mod shutdown;
mod token;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match cli.chosen() {
        cli::Command::Demo(args) => demo::run(&args),
        cli::Command::Init(args) => init::run(&args),
        cli::Command::Serve(args) => serve::run(&args),
        cli::Command::Load(args) => load::run(&args),
        cli::Command::Rehearse(args) => rehearse::run(&args),
        cli::Command::Audit(args) => audit::run(&args),
        cli::Command::Repair(args) => repair::repair(&args),
        cli::Command::Resume(args) => repair::resume(&args),
        cli::Command::Report(args) => report::run(&args),
        cli::Command::Token(args) => token::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flash-sale: {error:#}");
            ExitCode::FAILURE
        }
    }
}
