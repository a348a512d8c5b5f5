//! `outrigger init`

use std::{fs, io::Write, path::Path, process::ExitCode as Code};

use crate::{
    config::REFERENCE,
    observe::report::{ExitCode, Failure},
};

/// Writes the reference configuration, to `config.toml` or the file that `--config` names; never over an existing file.
pub fn run(file: Option<&Path>) -> Result<Code, Failure> {
    let path = file.unwrap_or(Path::new("config.toml"));
    let shown = path.display();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::new(ExitCode::Problem, anyhow::anyhow!("`{shown}` is already there"))
                .hint("edit it, or move it aside first")
        }
        _ => Failure::new(
            ExitCode::Problem,
            anyhow::Error::new(error).context(format!("cannot write `{shown}`")),
        )
        .hint("name a file in a directory that you may write to"),
    };
    let mut out = fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    out.write_all(REFERENCE.as_bytes()).map_err(failed)?;
    super::show::line(format!("wrote {shown}"));
    let config = file.map_or_else(String::new, |_| format!(" --config {shown}"));
    super::show::line(format!(
        "next: export MONGODB_LOCAL_URI and MONGODB_ATLAS_URI, then run `outrigger{config} check`"
    ));
    Ok(Code::SUCCESS)
}
