//! The traits a block works on: read once when it starts, written back once when the packet goes on.

use packet_traits_core::{KeyType, Merge};

use crate::{
    emit::{code::Code, needs::Needs, place::Place, slot},
    policy::{KeyId, Policy},
};

/// Declarations of the keys: their descriptors, and their bits in the words of the blocks' structures.
pub(super) fn declarations(code: &mut Code, policy: &Policy, names: &[String], used: &[KeyId]) {
    for id in used {
        let key = policy.key(*id);
        let merge = match key.merge {
            Merge::Block => "TRAIT_BLOCK",
            Merge::KeepFirst => "TRAIT_KEEP_FIRST",
            Merge::Discard => "TRAIT_DISCARD",
        };
        if !key.description.is_empty() {
            code.comment(&key.description);
        }
        code.line(format_args!(
            "TRAIT_KEY_NAMED({}, \"{}\", {}, {merge});",
            names[id.0],
            key.name,
            slot::c_type(key.key_type)
        ));
    }
    code.blank();
    for id in used {
        code.line(format_args!("#define HAS_{} (1ULL << {})", names[id.0], id.0));
    }
    if !used.is_empty() {
        code.blank();
    }
}

/// The structure `<name>_traits`.
pub(super) fn structure(code: &mut Code, name: &str, policy: &Policy, names: &[String], needs: &Needs, place: Place) {
    code.open(format_args!("struct {name}_traits"));
    code.line("__u64 _present;");
    code.line("__u64 _changed;");
    if has_area(place, needs) {
        code.line("__u64 _area; /* the packet has one */");
    }
    for id in needs.traits() {
        match policy.key(id).key_type {
            KeyType::Flag => {}
            KeyType::U128 | KeyType::Ipv6 | KeyType::Uuid => code.line(format_args!("pt_u128 {};", names[id.0])),
            // whole words, whatever the type: the verifier keeps track of these best
            _ => code.line(format_args!("__u64 {};", names[id.0])),
        }
    }
    code.close_with(";");
}

/// Whether the block must know if the packet has an area: at TC none can be made.
pub(super) fn has_area(place: Place, needs: &Needs) -> bool {
    matches!(place, Place::Tc(_)) && !needs.changed.is_empty()
}

/// Whether there is a function `<name>_load`.
pub(super) fn loads(place: Place, needs: &Needs) -> bool {
    !needs.loaded().is_empty() || has_area(place, needs)
}

/// The function `<name>_load`.
pub(super) fn load(code: &mut Code, name: &str, policy: &Policy, names: &[String], needs: &Needs, place: Place) {
    code.function(format_args!("__trait_global int {name}_load({} *ctx, struct {name}_traits *t)", place.context()));
    let loaded = needs.loaded();
    let reads = !loaded.is_empty();
    if reads {
        code.line("struct trait_view view;");
        for id in &loaded {
            let key = policy.key(*id);
            if key.key_type != KeyType::Flag {
                code.line(format_args!("{} {};", slot::c_type(key.key_type), names[id.0]));
            }
        }
        code.blank();
    }
    code.line("if (!t)");
    code.line("\treturn 0;");
    if has_area(place, needs) {
        code.line("t->_area = pt_tc_has_area(ctx);");
    }
    if reads {
        code.line("if (trait_view(ctx, &view))");
        code.line("\treturn 0;");
    }
    for id in &loaded {
        let key = policy.key(*id);
        let name = &names[id.0];
        if key.key_type == KeyType::Flag {
            code.line(format_args!("if (trait_view_is_set(&view, {name}))"));
            code.line(format_args!("\tt->_present |= HAS_{name};"));
        } else {
            code.open(format_args!("if (trait_view_get(&view, {name}, &{name}) > 0)"));
            code.line(format_args!("t->{name} = {};", slot::to_number(key.key_type, name)));
            code.line(format_args!("t->_present |= HAS_{name};"));
            code.close();
        }
    }
    code.line("return 0;");
    code.close();
}

/// The function `<name>_store`.
pub(super) fn store(code: &mut Code, name: &str, policy: &Policy, names: &[String], needs: &Needs, place: Place) {
    let call = match place {
        Place::Tc(_) => "trait_tc",
        _ => "trait",
    };
    code.function(format_args!("__trait_global int {name}_store({} *ctx, struct {name}_traits *t)", place.context()));
    code.line("if (!t)");
    code.line("\treturn 0;");
    for id in &needs.changed {
        let key = policy.key(*id);
        let name = &names[id.0];
        let set = match key.key_type {
            KeyType::Flag => format!("{call}_set_flag(ctx, {name});"),
            _ => format!("{call}_set(ctx, {name}, {});", slot::from_number(key.key_type, &format!("t->{name}"))),
        };
        if !needs.deleted.contains(id) {
            code.line(format_args!("if (t->_changed & HAS_{name})"));
            code.line(format_args!("\t{set}"));
            continue;
        }
        code.open(format_args!("if (t->_changed & HAS_{name})"));
        code.line(format_args!("if (t->_present & HAS_{name})"));
        code.line(format_args!("\t{set}"));
        code.line("else");
        code.line(format_args!("\t{call}_del(ctx, {name});"));
        code.close();
    }
    code.line("return 0;");
    code.close();
}
