//! The command line: which commands there are, and the value forms that they share.
//!
//! Each command's own flags stand in its module.

use crate::{audit, demo, init, load, rehearse, repair, report, serve, token};
use clap::{Parser, Subcommand};
use std::str::FromStr;
use std::time::Duration;
use stockade::types::SkuName;

/// A flash sale that cannot oversell: run one, serve one, or rehearse one.
#[derive(Debug, Parser)]
#[command(name = "flash-sale", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do; without a command, `demo`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a sale, send a crowd, show it live, audit it and write the report (the default)
    Demo(demo::Args),
    /// Make what a sale on many machines needs: tables in PostgreSQL, topics in Kafka
    Init(init::Args),
    /// Serve a sale over HTTP
    Serve(serve::Args),
    /// Send an open-loop crowd to a server
    Load(load::Args),
    /// Replay a real order log through the engine
    Rehearse(rehearse::Args),
    /// Verify a journal directory, or a log in PostgreSQL with its rows
    Audit(audit::Args),
    /// Show rows in PostgreSQL that differ from the log, and make them what it says
    Repair(repair::RepairArgs),
    /// Go on with a log in PostgreSQL that lost its end, or whose requests are gone from Kafka
    Resume(repair::ResumeArgs),
    /// Write report.html from a report.json
    Report(report::Args),
    /// Print a bearer token for a user
    Token(token::Args),
}

impl Cli {
    /// The command that was given, or a demo with its defaults.
    pub(crate) fn chosen(self) -> Command {
        self.command
            .unwrap_or_else(|| Command::Demo(demo::Args::default()))
    }
}

/// Reads `120s`, `500ms`, `2m`, `1h` or a bare number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => {
            return Err(format!(
                "`{unit}` is no unit of time: use ms, s, m or h, as in 120s"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "give a number and a unit, as in 120s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|error| error.to_string())
}

/// A SKU to sell, written `NAME=UNITS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SkuArg {
    /// What.
    pub(crate) name: SkuName,
    /// Its opening units.
    pub(crate) units: u64,
}

impl FromStr for SkuArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, units) = text
            .rsplit_once('=')
            .ok_or("give NAME=UNITS, as in SNEAKER=10000")?;
        let name = SkuName::new(name).map_err(|error| error.to_string())?;
        let units = units
            .trim()
            .parse()
            .map_err(|_| format!("`{units}` is no number of units"))?;
        if units > stockade::types::TOTAL_MAX {
            return Err(format!(
                "{units} units are too many: at most {}",
                stockade::types::TOTAL_MAX
            ));
        }
        Ok(Self { name, units })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// With what the containers have in their environment given as flags.
    #[test]
    fn the_commands_of_the_containers_can_be_run() {
        let compose = include_str!("../compose.yaml");
        let lines = || compose.lines().map(str::trim);
        let environment: Vec<(&str, &str)> = lines()
            .filter(|line| line.starts_with("FLASH_SALE_"))
            .filter_map(|line| line.split_once(": "))
            .collect();
        let commands: Vec<Vec<&str>> = lines()
            .filter_map(|line| line.strip_prefix("command: [")?.strip_suffix(']'))
            .map(|command| command.split(", ").collect())
            .collect();
        assert_eq!(commands.len(), 5, "{commands:?}");
        for command in commands {
            let program = Cli::command();
            let chosen = program.find_subcommand(command[0]);
            let chosen = chosen.unwrap_or_else(|| panic!("{command:?}"));
            let set = chosen.get_arguments().filter_map(|argument| {
                let name = argument.get_env()?.to_str()?;
                let (_, value) = environment.iter().find(|(set, _)| *set == name)?;
                Some(format!("--{}={value}", argument.get_long()?))
            });
            let set: Vec<String> = set.collect();
            let given = command
                .iter()
                .copied()
                .chain(set.iter().map(String::as_str));
            let parsed = Cli::try_parse_from(std::iter::once("flash-sale").chain(given));
            assert!(parsed.is_ok(), "{command:?} {set:?}: {parsed:?}");
        }
    }

    #[test]
    fn durations_take_a_unit_or_count_seconds() {
        assert_eq!(duration("120s"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("7 days").is_err());
        assert!(duration("s").is_err());
    }

    #[test]
    fn a_sku_is_a_name_and_its_units() {
        let sku: SkuArg = "A=B=12".parse().expect("the last = divides");
        assert_eq!((sku.name.as_str(), sku.units), ("A=B", 12));
        assert!("SNEAKER".parse::<SkuArg>().is_err());
        assert!("SNEAKER=-1".parse::<SkuArg>().is_err());
        assert!("=5".parse::<SkuArg>().is_err());
    }
}
