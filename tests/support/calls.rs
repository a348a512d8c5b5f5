//! What a process did to the files below a folder, call by call, and what would be left of it: had the process been killed
//! behind any of the calls, or had the power gone.
//!
//! A kill leaves all that was written. When the power goes, what was not synced is on the disk in part, in any order and
//! cut at a sector; names are as after some call behind the last sync, as journals of file systems keep them (ext4, xfs).
//! `sync_file_range` counts for nothing: it leaves what is in the disk's own memory there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng, rngs::StdRng};

/// One call that changed something.
struct Call {
    kind: u8,
    path: String,
    to: Option<String>,
    at: usize,
    bytes: Vec<u8>,
}

/// All that a process did, and what was there before.
pub struct Calls {
    before: PathBuf,
    calls: Vec<Call>,
}

/// What ends the process behind a call.
pub enum End<'a> {
    Kill,
    PowerCut(&'a mut StdRng),
}

/// The library that writes the calls down; `None` where there is no C compiler.
pub fn library(dir: &Path) -> Option<PathBuf> {
    let (from, to) = (dir.join("calls.c"), dir.join("calls.so"));
    std::fs::write(&from, include_str!("calls.c")).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&to).arg(&from).status();
    built.is_ok_and(|status| status.success()).then_some(to)
}

impl Calls {
    /// Has `command` work in `folder`, of which `before` is a copy.
    pub fn of(mut command: Command, library: &Path, folder: &Path, before: PathBuf) -> Self {
        let journal = library.with_extension("journal");
        let _ = std::fs::remove_file(&journal);
        command.env("LD_PRELOAD", library).env("OUTRIGGER_TEST_JOURNAL", &journal);
        let ended = command.env("OUTRIGGER_TEST_FILES_OF", folder).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
        let text = std::fs::read(&journal).unwrap();
        let mut rest = &text[..];
        let mut calls = Vec::new();
        while !rest.is_empty() {
            let mut take = |n: usize| {
                let (bytes, left) = rest.split_at(n);
                rest = left;
                bytes
            };
            let kind = take(1)[0];
            let mut word = || {
                let n = u16::from_le_bytes(take(2).try_into().unwrap());
                String::from_utf8(take(n.into()).to_vec()).unwrap()
            };
            let (path, to) = (word(), word());
            let at = u64::from_le_bytes(take(8).try_into().unwrap()) as usize;
            let n = u64::from_le_bytes(take(8).try_into().unwrap()) as usize;
            let to = Some(to).filter(|to| !to.is_empty());
            calls.push(Call { kind, path, to, at, bytes: take(n).to_vec() });
        }
        Self { before, calls }
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// The last of the first `n` calls, in words.
    pub fn told(&self, n: usize) -> String {
        let Some(call) = n.checked_sub(1).and_then(|last| self.calls.get(last)) else {
            return "nothing".to_owned();
        };
        let (kind, len) = (char::from(call.kind), call.bytes.len());
        format!("`{kind}` of {} {:?} at {}, {len} bytes", call.path, call.to, call.at)
    }

    /// Makes in `folder` what is left once the first `n` calls were made.
    pub fn left(&self, n: usize, end: End<'_>, folder: &Path) {
        let mut disk = Disk::default();
        disk.take_in(&self.before, "");
        for call in &self.calls[..n] {
            disk.makes(call);
        }
        let (names, files) = disk.ends(end);
        for (name, at) in names {
            match at {
                None => std::fs::create_dir_all(folder.join(name)).unwrap(),
                Some(at) => std::fs::write(folder.join(name), &files[at]).unwrap(),
            }
        }
    }
}

/// A name → the file that it has; nothing for a folder.
type Names = BTreeMap<String, Option<usize>>;

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    /// Of no bytes: the file ends there.
    since: Vec<(usize, Vec<u8>)>,
}

#[derive(Default)]
struct Disk {
    files: Vec<File>,
    names: Names,
    /// As after each call behind the last sync, that before them first.
    since: Vec<Names>,
}

impl Disk {
    fn take_in(&mut self, from: &Path, below: &str) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                self.names.insert(name.clone(), None);
                self.take_in(&entry.path(), &format!("{name}/"));
            } else {
                let synced = std::fs::read(entry.path()).unwrap();
                self.names.insert(name, Some(self.files.len()));
                self.files.push(File { synced, since: Vec::new() });
            }
        }
    }

    fn makes(&mut self, call: &Call) {
        let file = self.names.get(&call.path).copied().flatten();
        match (call.kind, file) {
            // The process may hold a file that has no name any more, of which nothing is left.
            (b'w', Some(at)) => self.files[at].since.push((call.at, call.bytes.clone())),
            (b't', Some(at)) => self.files[at].since.push((call.at, Vec::new())),
            (b's', _) => {
                if let Some(at) = file {
                    let file = &mut self.files[at];
                    for (at, bytes) in std::mem::take(&mut file.since) {
                        write(&mut file.synced, at, &bytes);
                    }
                }
                self.since.clear();
            }
            (b'c' | b'd' | b'u' | b'r', _) => {
                self.since.push(self.names.clone());
                self.renames(call);
            }
            _ => {}
        }
    }

    fn renames(&mut self, call: &Call) {
        match (call.kind, &call.to) {
            (b'c', _) => {
                self.names.insert(call.path.clone(), Some(self.files.len()));
                self.files.push(File::default());
            }
            (b'd', _) => drop(self.names.insert(call.path.clone(), None)),
            (b'r', Some(to)) => {
                let below = format!("{}/", call.path);
                let names = std::mem::take(&mut self.names);
                let moved = |name: String| match name.strip_prefix(&below) {
                    _ if name == call.path => to.clone(),
                    Some(rest) => format!("{to}/{rest}"),
                    None => name,
                };
                // What stood there gives way.
                let stays = names.into_iter().filter(|(name, _)| name != to);
                self.names = stays.map(|(name, at)| (moved(name), at)).collect();
            }
            _ => drop(self.names.remove(&call.path)),
        }
    }

    fn ends(mut self, end: End<'_>) -> (Names, Vec<Vec<u8>>) {
        let End::PowerCut(rng) = end else {
            let all = |mut file: File| {
                for (at, bytes) in file.since {
                    write(&mut file.synced, at, &bytes);
                }
                file.synced
            };
            return (self.names, self.files.into_iter().map(all).collect());
        };
        self.since.push(self.names);
        let names = self.since.swap_remove(rng.random_range(0..self.since.len()));
        // Mostly the last of it is missing, and at times anything.
        let is_kept = [1.0, 0.95, 0.5, 0.0][rng.random_range(0..4)];
        let mut some = |mut file: File| {
            let last = rng.random_range(0..=file.since.len());
            for (at, mut bytes) in file.since.into_iter().take(last) {
                if rng.random_bool(is_kept) {
                    if rng.random_bool(0.1) {
                        bytes.truncate(rng.random_range(0..=bytes.len() / 512) * 512);
                    }
                    write(&mut file.synced, at, &bytes);
                }
            }
            file.synced
        };
        let files = self.files.into_iter().map(&mut some).collect();
        (names, files)
    }
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        file.resize(at, 0);
        return;
    }
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
