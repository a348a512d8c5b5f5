//! What a client is made with beside its connection string: the system's authorities, and the configured compressors.

use std::sync::Arc;

use mongodb::{
    error::Result,
    options::{ClientOptions, Compressor, Tls},
};

use super::ending::Ended;
use crate::runtime::trust::CaFile;

/// Makes a client. The driver knows Mozilla's authorities alone, and reads a file while the client is made.
pub(super) fn trusting(mut options: ClientOptions) -> Result<Arc<Ended>> {
    let authorities = match &mut options.tls {
        Some(Tls::Enabled(tls)) if tls.ca_file_path.is_none() => CaFile::new()
            .inspect(|file| tls.ca_file_path = Some(file.path().into()))
            .inspect_err(|error| tracing::warn!(%error, "the system's certificates are left out"))
            .ok(),
        _ => None,
    };
    let client = Ended::made_of(options);
    drop(authorities);
    client
}

/// The compressors of these names.
pub(super) fn compressors(names: &[String]) -> Vec<Compressor> {
    // zstd at its own default level, 3. Level 1 was weighed with orders of 285 B: in messages of 1,000 it
    // takes 0.62 µs of CPU for each instead of 0.74, and sends 70 B instead of 62; alone in a message, 13 µs
    // instead of 22 for the same bytes. The line is scarcer than that.
    let known = |name: &String| match name.as_str() {
        #[cfg(feature = "zstd")]
        "zstd" => Some(Compressor::Zstd { level: None }),
        "zlib" => Some(Compressor::Zlib { level: None }),
        "snappy" => Some(Compressor::Snappy),
        _ => None,
    };
    names.iter().filter_map(known).collect()
}
