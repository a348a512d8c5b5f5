//! A real Chromium, driven through ChromeDriver.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    eventually, free_port,
    proof::{Need, not_proved},
};

/// Both programs, as `scripts/chromium` finds or installs them. `None`, and said so, where that may not be.
pub fn programs() -> Option<[PathBuf; 2]> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chromium");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
    if !output.status.success() {
        not_proved(Need::Chromium);
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(PathBuf::from);
    Some([lines.next()?, lines.next()?])
}

/// A browser with a profile of its own. Both processes end when it is dropped.
pub struct Browser {
    pub page: Client,
    driver: Child,
    _profile: TempDir,
}

impl Browser {
    /// Opens `url` in a browser with further `flags`.
    pub async fn open([chromium, chromedriver]: &[PathBuf; 2], url: &str, flags: &[&str]) -> Self {
        let port = free_port();
        let driver = Command::new(chromedriver)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        eventually("chromedriver", Duration::from_secs(30), async || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        let profile = TempDir::new().unwrap();
        let data = format!("--user-data-dir={}", profile.path().display());
        let mut args = vec![
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,1400",
            &data,
        ];
        args.extend(flags);
        let options = json!({ "binary": chromium, "args": args });
        let mut capabilities = serde_json::Map::new();
        capabilities.insert("goog:chromeOptions".to_owned(), options);
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities);
        let page = builder.connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
        page.goto(url).await.unwrap();
        Self { page, driver, _profile: profile }
    }

    /// The value of a JavaScript expression.
    pub async fn js(&self, expression: &str) -> Value {
        self.page.execute(&format!("return {expression}"), vec![]).await.unwrap()
    }

    /// The text of the element with this id, as the page has it.
    pub async fn text(&self, id: &str) -> String {
        let value = self.js(&format!("document.getElementById('{id}').textContent")).await;
        value.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element's text contains `part`.
    pub async fn shows(&self, id: &str, part: &str) {
        let mut last = String::new();
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while !last.contains(part) {
            assert!(std::time::Instant::now() < deadline, "#{id} says {last:?}, not {part:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            last = self.text(id).await;
        }
    }

    pub async fn is_visible(&self, css: &str) -> bool {
        match self.page.find(Locator::Css(css)).await {
            Ok(element) => element.is_displayed().await.unwrap_or(false),
            Err(_) => false,
        }
    }

    pub async fn click(&self, css: &str) {
        self.page.find(Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    pub async fn type_into(&self, css: &str, text: &str) {
        self.page.find(Locator::Css(css)).await.unwrap().send_keys(text).await.unwrap();
    }

    /// As wide and high as a screen.
    pub async fn resize(&self, width: u32, height: u32) {
        self.page.set_window_size(width, height).await.unwrap();
    }

    /// Words that stand on two lines, with where, and what reaches over the right edge of the page.
    pub async fn broken_words(&self) -> (Value, Value) {
        const SCRIPT: &str = r"(() => {
            const broken = [];
            const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (texts.nextNode()) {
                const { data, parentElement } = texts.currentNode;
                if (!parentElement.checkVisibility() || parentElement.closest('script')) continue;
                for (const { 0: word, index } of data.matchAll(/\S+/g)) {
                    const range = document.createRange();
                    range.setStart(texts.currentNode, index);
                    range.setEnd(texts.currentNode, index + word.length);
                    const boxes = [...range.getClientRects()].filter((box) => box.width > 0);
                    const lines = new Set(boxes.map((box) => Math.round(box.top)));
                    if (lines.size > 1) broken.push(`${word} in ${parentElement.id || parentElement.tagName}`);
                }
            }
            const { scrollWidth, clientWidth } = document.documentElement;
            if (scrollWidth <= clientWidth) return [broken, []];
            const wide = [...document.querySelectorAll('body *')].filter(
                (element) => element.getBoundingClientRect().right > clientWidth);
            return [broken, wide.map((element) => element.outerHTML.slice(0, 200))];
        })()";
        let found = self.js(SCRIPT).await;
        (found[0].clone(), found[1].clone())
    }

    /// What axe-core finds on the page as it is, by all of its rules: nothing, or it says so.
    pub async fn is_accessible(&self, what: &str) {
        const ASK: &str = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] }).then((found) => done(found.violations.map(
                (one) => [one.id, one.help, ...one.nodes.map((node) => node.html.slice(0, 200) + node.failureSummary)])),
                (error) => done([String(error)]));";
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/axe");
        let found =
            Command::new(script).stderr(Stdio::inherit()).output().expect("the script runs");
        if !found.status.success() {
            return not_proved(Need::Axe);
        }
        if self.js("typeof axe").await == "undefined" {
            let path = String::from_utf8(found.stdout).unwrap();
            let program = std::fs::read_to_string(path.trim()).unwrap();
            self.page.execute(&program, vec![]).await.unwrap();
        }
        let found = self.page.execute_async(ASK, vec![]).await.unwrap();
        assert_eq!(found, json!([]), "{what}: {found:#}");
    }

    /// Keeps a picture of the page under `target/dashboard/`, and under `docs/` where `OUTRIGGER_PICTURES` is set: those
    /// that the documentation shows.
    pub async fn picture_for_docs(&self, name: &str) {
        self.picture(name).await;
        if std::env::var_os("OUTRIGGER_PICTURES").is_some() {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let taken = root.join(format!("target/dashboard/{name}.png"));
            std::fs::copy(taken, root.join(format!("docs/{name}.png"))).unwrap();
        }
    }

    /// Keeps a picture of the page under `target/dashboard/`.
    pub async fn picture(&self, name: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dashboard");
        std::fs::create_dir_all(&folder).unwrap();
        let png = self.page.screenshot().await.unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    pub async fn close(self) {
        let _ = self.page.clone().close().await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends its browser, which is a child of its own, when it is asked to.
        let _ = Command::new("kill").arg(self.driver.id().to_string()).status();
        let _ = self.driver.wait();
    }
}
