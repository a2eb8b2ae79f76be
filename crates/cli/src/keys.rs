//! `traits keys`: registers, lists and removes keys of a registry.

use clap::Subcommand;
use packet_traits::{
    KeyName, KeyType, Merge,
    registry::{Description, KeyEntry, KeySpec, Utc},
};
use serde::Serialize;

use crate::{
    Global, Outcome,
    output::{self, KeyJson, Table},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Register a key, or find it if it is registered this way already
    #[command(after_help = ADD_HELP)]
    Add {
        /// Name: a letter from a to z, then at most 30 of a-z, 0-9, '_', '.' and '-'
        name: KeyName,
        /// flag, u8, u16, u32, u64, u128, i64, ipv4, ipv6, mac, uuid or timestamp
        #[arg(value_name = "TYPE")]
        key_type: KeyType,
        /// What GRO does with packets whose values differ: block (they stay apart), keep-first (they are merged and
        /// keep the first one's value) or discard (they are merged and have none)
        #[arg(long, default_value_t)]
        merge: Merge,
        /// What the key means, one line of at most 127 bytes
        #[arg(long, value_name = "TEXT", default_value_t, hide_default_value = true)]
        description: Description,
        /// Print the key as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the registered keys
    #[command(after_help = LIST_HELP)]
    List {
        /// Print the keys as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a key that no loaded program uses
    #[command(after_help = REMOVE_HELP)]
    Remove {
        /// The key's name
        name: KeyName,
        /// Remove it even if loaded programs use it
        #[arg(long)]
        force: bool,
        /// Print the removed key as JSON
        #[arg(long)]
        json: bool,
    },
}

const ADD_HELP: &str = "\
Examples:
  traits keys add tenant u32 --description 'who pays for this packet'
  traits keys add rx_ts timestamp --merge keep-first

docs/json.md lists the members of what --json prints.";

const LIST_HELP: &str = "\
Examples:
  traits keys list
  traits keys list --json | jq -r '.keys[].name'

docs/json.md lists the members of what --json prints.";

const REMOVE_HELP: &str = "\
Examples:
  traits keys remove tenant

docs/json.md lists the members of what --json prints.";

#[derive(Serialize)]
struct ListJson<'a> {
    registry: &'a str,
    keys: Vec<KeyJson>,
}

pub(crate) fn run(command: &Command, global: &Global) -> Outcome {
    let registry = global.options().open()?;
    match command {
        Command::Add { name, key_type, merge, description, json } => {
            let spec = KeySpec::new(*name, *key_type).merge(*merge).description(description.clone());
            let entry = registry.register(&spec)?;
            if *json {
                output::json(&KeyJson::from(&entry))?;
            } else {
                output::line(format_args!("{}: {}", entry.key.name(), place(&entry)))?;
            }
        }
        Command::List { json } => {
            let keys = registry.list()?;
            if *json {
                let keys = keys.iter().map(KeyJson::from).collect();
                output::json(&ListJson { registry: registry.name().as_str(), keys })?;
            } else if keys.is_empty() {
                output::line(format_args!("registry '{}' has no keys", registry.name()))?;
            } else {
                table(&keys).print()?;
            }
        }
        Command::Remove { name, force, json } => {
            let entry = registry.unregister(name, *force)?;
            if *json {
                output::json(&KeyJson::from(&entry))?;
            } else {
                output::line(format_args!("removed {name}"))?;
            }
        }
    }
    Ok(())
}

/// Keys, one a row.
pub(crate) fn table(keys: &[KeyEntry]) -> Table {
    let mut table = Table::new(&["KEY", "NAME", "TYPE", "MERGE", "SINCE", "OWNER", "DESCRIPTION"]);
    for entry in keys {
        table.row(&[
            &entry.key.number(),
            entry.key.name(),
            &entry.key.key_type(),
            &entry.merge,
            &Utc(entry.registered_at),
            &entry.owner,
            &entry.description,
        ]);
    }
    table
}

/// `key 3, u32 in the flow region, 20 bytes before the packet data`
fn place(entry: &KeyEntry) -> String {
    let (number, slot) = (entry.key.number(), entry.key.slot());
    let head = format!("key {number}, {} in the {} region", entry.key.key_type(), slot.region());
    if slot.size() == 0 { head } else { format!("{head}, {} bytes before the packet data", slot.distance()) }
}
