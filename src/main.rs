//! `outrigger`: see [`outrigger::cli`].

use std::process::ExitCode;

use clap::Parser;
use outrigger::{cli::Cli, commands};
use rustix::fs::Mode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // The queue and exports hold the application's documents, the token opens the API: for the owner alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // clap exits with 2 on wrong usage, and with 0 after `--help` and `--version`.
    let cli = Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            anstream::eprint!("{}", failure.render_in_colour());
            ExitCode::from(failure.exit as u8)
        }
    }
}
