//! `outrigger`: see [`outrigger::cli`].

use std::process::ExitCode;

use clap::Parser;
use outrigger::{cli::Cli, commands};

fn main() -> ExitCode {
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
