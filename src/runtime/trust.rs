//! Which authorities are believed in TLS: Mozilla's, which come with the program, and the system's, where a company
//! puts its own (`update-ca-certificates`, `SSL_CERT_FILE`, `SSL_CERT_DIR`).
//!
//! One list for Atlas, the local database, the web hook and the heartbeat. `tlsCAFile` in a connection string takes its
//! place for that end.

use std::{collections::BTreeSet, fmt::Write as _, fs::File, io::Write, os::fd::AsRawFd};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::fs::{MemfdFlags, memfd_create};

/// Each authority's certificate as DER, read anew: what was added to the system since counts.
pub fn authorities() -> BTreeSet<Vec<u8>> {
    let of_the_system = rustls_native_certs::load_native_certs();
    for error in of_the_system.errors {
        let error = crate::observe::report::one_line(&error);
        tracing::debug!(%error, "the system's certificates cannot all be read");
    }
    let all = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().chain(&of_the_system.certs);
    all.map(|certificate| certificate.to_vec()).collect()
}

/// The authorities as a file for the driver, which takes them in no other form. It is there for as long as the value
/// is held, and on no disk.
#[derive(Debug)]
pub struct CaFile(File);

impl CaFile {
    /// # Errors
    /// When the system has no memory for it, or no `/proc`.
    pub fn new() -> std::io::Result<Self> {
        let mut pem = String::new();
        for certificate in authorities() {
            let text = STANDARD.encode(certificate);
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            for line in text.as_bytes().chunks(64) {
                // Neither can fail: base64 is ASCII, and writing to a string has no errors.
                let _ = writeln!(pem, "{}", String::from_utf8_lossy(line));
            }
            pem.push_str("-----END CERTIFICATE-----\n");
        }
        let make = |flags| memfd_create("authorities", MemfdFlags::CLOEXEC | flags);
        // With `vm.memfd_noexec=2` a host refuses a file in memory without this flag; kernels before 6.3 refuse the flag.
        let file = make(MemfdFlags::NOEXEC_SEAL).or_else(|_| make(MemfdFlags::empty()))?;
        let mut file = File::from(file);
        file.write_all(pem.as_bytes())?;
        let file = Self(file);
        File::open(file.path())?;
        Ok(file)
    }

    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_every_authority_and_goes_with_its_value() {
        let file = CaFile::new().unwrap();
        let path = file.path();

        let text = std::fs::read_to_string(&path).unwrap();

        assert_eq!(text.matches("-----BEGIN CERTIFICATE-----\n").count(), authorities().len());
        assert!(authorities().len() >= webpki_root_certs::TLS_SERVER_ROOT_CERTS.len());
        assert!(text.lines().all(|line| line.len() <= 64));
    }
}
