//! `deploy/kubernetes/`, as far as it can be told without a cluster: against Kubernetes's own schemas, and against what
//! the program and its image are.

use std::{
    collections::HashMap,
    path::Path,
    process::{Command, Output},
};

use outrigger::config::load;
use tempfile::TempDir;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn validated(files: &[&Path]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kubernetes-validate");
    Command::new(script).args(files).output().unwrap()
}

#[test]
fn the_manifest_is_valid_and_the_checker_would_say_so_if_it_were_not() {
    let good = validated(&[]);
    let error = String::from_utf8_lossy(&good.stderr);
    assert!(good.status.success(), "{error}{}", String::from_utf8_lossy(&good.stdout));

    let dir = TempDir::new().unwrap();
    let path = dir.path().join("bad.yaml");
    let text = read("deploy/kubernetes/outrigger.yaml");
    for (right, wrong) in
        [("replicas: 1", "replica: 1"), ("failureThreshold: 3\n", "failureThreshold: \"3\"\n")]
    {
        assert!(text.contains(right));
        std::fs::write(&path, text.replace(right, wrong)).unwrap();
        assert!(!validated(&[&path]).status.success(), "{wrong}");
    }
}

#[test]
fn the_manifest_and_the_program_mean_the_same() {
    let text = read("deploy/kubernetes/outrigger.yaml");
    // One agent, one copy.
    assert!(text.contains("\n  replicas: 1\n"));
    // The image's user, and the image's version.
    let image = read("deploy/Dockerfile");
    assert!(image.contains("USER 10001:10001") && text.contains("runAsUser: 10001"));
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.contains(&format!("image: outrigger:{version}\n")), "of another version");

    // The configuration is one, and says where secrets and queue are mounted.
    let (_, rest) = text.split_once("  config.toml: |\n").unwrap();
    let config: String = rest
        .lines()
        .take_while(|line| *line != "---")
        .flat_map(|line| [line.trim(), "\n"])
        .collect();
    let dir = TempDir::new().unwrap();
    for name in ["local.uri", "atlas.uri"] {
        std::fs::write(dir.path().join(name), "mongodb://h/shop?tls=true").unwrap();
    }
    let mounted = "/etc/outrigger/secrets";
    assert!(config.contains(mounted) && text.contains(&format!("mountPath: {mounted},")));
    let path = dir.path().join("config.toml");
    let here = config.replace(mounted, &dir.path().display().to_string());
    std::fs::write(&path, here).unwrap();
    let none = HashMap::<String, String>::new();
    let config = load(Some(&path), |name| none.get(name).cloned()).unwrap();
    assert!(config.queue.path.starts_with("/var/lib/outrigger"));
    assert!(config.admin.token_file.starts_with("/var/lib/outrigger"));
    assert!(text.contains("mountPath: /var/lib/outrigger}"));
    assert_eq!(config.admin.listen.port(), 8686);
    assert!(config.admin.listen.ip().is_unspecified(), "the kubelet comes from outside");
    let (_, grace) = text.split_once("terminationGracePeriodSeconds: ").unwrap();
    let grace: u64 = grace.lines().next().unwrap().parse().unwrap();
    assert!(grace > config.shutdown.drain_for.as_secs());
    assert_eq!(text.matches("httpGet: {path: /healthz, port: admin}").count(), 2);
    // A start waits for the local database and opens a queue of any size: that is no reason to end it.
    let (_, startup) = text.split_once("startupProbe:").unwrap();
    let (_, tries) = startup.split_once("failureThreshold: ").unwrap();
    assert_eq!(tries.lines().next().unwrap().parse(), Ok(i32::MAX));
}
