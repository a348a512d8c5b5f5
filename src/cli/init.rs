//! `outrigger init`

use std::{fs, io::Write, process::ExitCode as Code};

use crate::{
    config::REFERENCE,
    observe::report::{ExitCode, Failure},
};

/// Writes the reference configuration; never over an existing file.
pub fn run() -> Result<Code, Failure> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::new(ExitCode::Problem, anyhow::anyhow!("`config.toml` is already there"))
                .hint("edit it, or move it aside first")
        }
        _ => Failure::new(
            ExitCode::Problem,
            anyhow::Error::new(error).context("cannot write `config.toml`"),
        )
        .hint("run it in a directory that you may write to"),
    };
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).open("config.toml").map_err(failed)?;
    file.write_all(REFERENCE.as_bytes()).map_err(failed)?;
    super::show::line("wrote config.toml");
    super::show::line(
        "next: export MONGODB_LOCAL_URI and MONGODB_ATLAS_URI, then run `outrigger check`",
    );
    Ok(Code::SUCCESS)
}
