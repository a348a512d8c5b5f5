// Least privilege, to paste into mongosh. Passwords are asked for. A test runs the agent with exactly these.
// `outrigger roles --mongosh` prints this for the namespaces of a configuration.

// --- on the local database: reads only --------------------------------------------------------
use admin
db.createRole({
  "role": "outriggerReader",
  "privileges": [
    { "resource": { "db": "", "collection": "" }, "actions": ["find", "changeStream", "listCollections", "listIndexes", "collStats"] },
    { "resource": { "cluster": true }, "actions": ["listDatabases", "replSetGetConfig", "replSetGetStatus"] },
    { "resource": { "db": "local", "collection": "oplog.rs" }, "actions": ["find"] }
  ],
  "roles": []
})
db.createUser({ user: "outrigger", pwd: passwordPrompt(), roles: ["outriggerReader"] })

// --- on the target, for the database `shop` --------
// Atlas takes no createUser: `outrigger roles` prints its own command, and the rows of its web page.
use admin
db.createUser({ user: "outrigger", pwd: passwordPrompt(), roles: [
  { "role": "readWrite", "db": "shop" },
  { "role": "dbAdmin", "db": "shop" },
  { "role": "readWrite", "db": "outrigger" },
  { "role": "clusterMonitor", "db": "admin" }
] })
