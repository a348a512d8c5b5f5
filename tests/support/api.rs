//! The admin API of a running agent, with its token.

use serde_json::Value;

use super::agent::Agent;

pub struct Api {
    base: String,
    pub token: String,
    http: ureq::Agent,
}

impl Api {
    pub fn of(agent: &Agent) -> Self {
        Self {
            base: format!("http://127.0.0.1:{}", agent.admin_port),
            token: std::fs::read_to_string(agent.dir.path().join("outrigger.token")).unwrap(),
            http: ureq::Agent::config_builder().http_status_as_error(false).build().into(),
        }
    }

    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        self.send(method, path, headers, "")
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = self.http.run(request.body(body).unwrap()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        self.call("GET", path, &[])
    }

    pub fn with_token(&self, method: &str, path: &str) -> (u16, Value) {
        self.with_body(method, path, "")
    }

    pub fn with_body(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let bearer = format!("Bearer {}", self.token);
        self.send(method, path, &[("Authorization", &bearer)], body)
    }
}
