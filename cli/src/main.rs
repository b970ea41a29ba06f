//! The `failback` command: makes one virtual disk equal to another, sending only what differs.
//!
//! Thin by intent: arguments in, one call of the engine, results out. Results go to stdout,
//! everything else to stderr.
#![forbid(unsafe_code)]

mod args;
mod command;
mod job_args;
mod job_command;
mod job_output;
mod link_args;
mod output;
mod pair_command;
mod plan_args;
mod plan_output;
mod progress;
mod size;
mod watch;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return args::explain(&error),
    };
    start_log(args.log);
    output::exit_of(command::run(args.command))
}

/// Diagnostics of the library, on request.
fn start_log(level: Option<args::LogLevel>) {
    if let Some(level) = level {
        tracing_subscriber::fmt()
            .with_max_level(level.filter())
            .with_writer(std::io::stderr)
            .init();
    }
}
