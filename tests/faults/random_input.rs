//! A short run of each fuzz target in every test run: random bytes, and samples with random damage. The
//! long run is `cargo fuzz` in `fuzz/`. What was found is kept here, by name.

use outrigger::fuzz;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::support::{root, seed};

#[path = "../../fuzz/fuzz_targets/admin_request.rs"]
#[expect(unused_attributes, reason = "it is a program of its own elsewhere")]
mod admin_request;
#[path = "../../fuzz/fuzz_targets/codec.rs"]
#[expect(unused_attributes, reason = "it is a program of its own elsewhere")]
mod codec;
#[path = "../../fuzz/fuzz_targets/configuration.rs"]
#[expect(unused_attributes, reason = "it is a program of its own elsewhere")]
mod configuration;
#[path = "../../fuzz/fuzz_targets/delta.rs"]
#[expect(unused_attributes, reason = "it is a program of its own elsewhere")]
mod delta;
#[path = "../../fuzz/fuzz_targets/event.rs"]
#[expect(unused_attributes, reason = "it is a program of its own elsewhere")]
mod event;

/// A target as cargo-fuzz has it, compiled with all else.
type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 5] = [
    ("admin_request", admin_request::target),
    ("codec", codec::target),
    ("configuration", configuration::target),
    ("delta", delta::target),
    ("event", event::target),
];

const ROUNDS: usize = 20_000;

/// Random bytes, and, mostly, a sample in which some bytes were changed, cut out, doubled or put in.
fn input(rng: &mut StdRng, samples: &[Vec<u8>]) -> Vec<u8> {
    if rng.random_bool(0.1) {
        let mut bytes = vec![0; rng.random_range(0..200)];
        rng.fill_bytes(&mut bytes);
        return bytes;
    }
    let mut bytes = samples.choose(rng).unwrap().clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=bytes.len().min(at + 12));
        match rng.random_range(0..5) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            2 => bytes.insert(at, rng.random()),
            3 => {
                let other = samples.choose(rng).unwrap();
                let from = rng.random_range(0..=other.len());
                bytes.splice(at..end, other[from..other.len().min(from + 12)].iter().copied());
            }
            _ => {
                for byte in &mut bytes[at..end] {
                    *byte = *[0, 1, 0x7F, 0x80, 0xFF, rng.random()].choose(rng).unwrap();
                }
            }
        }
    }
    bytes
}

/// The samples themselves are understood often enough, else the damaged ones would prove nothing.
fn run(samples: &[Vec<u8>], rounds: usize, target: fn(&[u8]) -> bool) {
    let mut rng = StdRng::seed_from_u64(seed());
    let understood = samples.iter().filter(|sample| target(sample)).count();
    assert!(understood * 3 > samples.len(), "{understood} of {} samples", samples.len());
    for _ in 0..rounds {
        let bytes = input(&mut rng, samples);
        let result = std::panic::catch_unwind(|| target(&bytes));
        assert!(result.is_ok(), "for the input {bytes:?}");
    }
}

#[test]
fn the_queue_codec_survives_any_bytes() {
    run(&fuzz::codec_samples(), ROUNDS, fuzz::codec);
}

#[test]
fn the_change_event_parser_survives_any_bytes() {
    run(&fuzz::event_samples(), ROUNDS, fuzz::event);
}

#[test]
fn the_delta_application_survives_any_bytes_and_merges_exactly() {
    run(&fuzz::delta_samples(), ROUNDS, fuzz::delta);
}

#[test]
fn the_configuration_survives_any_bytes() {
    let reference = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml")).unwrap();
    let sections = reference.split(|byte| *byte == b'[').map(|part| [b"[", part].concat());
    run(&sections.collect::<Vec<_>>(), ROUNDS / 4, fuzz::configuration);
}

#[test]
fn the_admin_api_survives_any_request() {
    let requests = [
        "\0/api/queue?limit=5\napplication/json\n",
        "\0/api/queue/0192f0c1-2d3e-7abc-8def-0123456789ab\n\n",
        "\0/api/dead-letters?limit=-1\n\n",
        "\x01/api/dead-letters/0192f0c1-2d3e-7abc-8def-0123456789ab/retry\ntext/plain\n{}",
        "\x02/api/dead-letters/x\n\n",
        "\x01/api/sync/pause\napplication/json\n{\"a\": [1, 2]}",
        "\x01/api/sync/resume\napplication/json\n",
        "\0/api/sync/health\n\n",
        "\0/api/sync/metrics\n\n",
        "\0/readyz\n\n",
        "\x03/healthz\n\n",
    ];
    let requests: Vec<_> = requests.iter().map(|request| request.as_bytes().to_vec()).collect();
    run(&requests, ROUNDS / 4, fuzz::admin_request);
}

#[test]
fn each_target_of_the_fuzzer_is_compiled_and_run_here() {
    let folder = root().join("fuzz");
    let mut files: Vec<_> = std::fs::read_dir(folder.join("fuzz_targets"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    assert_eq!(files, TARGETS.map(|(name, _)| name));
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    for (name, target) in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let line = makefile.lines().find(|line| line.contains("for target in")).unwrap();
        assert!(line.contains(name), "`make fuzz` runs {name}");
        target(b"");
    }
}
