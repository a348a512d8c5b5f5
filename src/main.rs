//! `outrigger`: see [`outrigger::cli::args`].

use std::process::ExitCode;

use clap::Parser;
use outrigger::{
    cli::{self, args::Cli},
    observe::logging,
};
use rustix::fs::Mode;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Nothing that was logged is lost, however `main` is left.
struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        logging::flush();
    }
}

fn main() -> ExitCode {
    logging::take_panics();
    let _flush = Flush;
    // The queue and exports hold the application's documents, the token opens the API: for the owner alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // clap exits with 2 on wrong usage, and with 0 after `--help` and `--version`.
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            let in_colour = anstream::AutoStream::choice(&std::io::stderr());
            logging::last_words(&if in_colour == anstream::ColorChoice::Never {
                failure.render()
            } else {
                failure.render_in_colour()
            });
            ExitCode::from(failure.exit as u8)
        }
    }
}
