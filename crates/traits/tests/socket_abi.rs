//! The socket options' numbers and structs are the same in Rust as in `packet_traits/socket.h`, and that header compiles
//! without warnings.

use std::{
    env, fs,
    io::Write,
    mem::offset_of,
    path::Path,
    process::{self, Command, Stdio},
};

use packet_traits_socket::abi;

/// A line of the C program that prints an integer expression under a name.
fn print(name: &str, expression: &str) -> String {
    format!("\tprintf(\"{name} %lld\\n\", (long long)({expression}));\n")
}

/// Compiles and runs a C program that prints these expressions, and answers what it said.
fn run(expressions: &[(String, String)]) -> String {
    let prints: String = expressions.iter().map(|(name, expression)| print(name, expression)).collect();
    let program = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <packet_traits/socket.h>\n\nint main(void)\n{{\n{prints}\treturn 0;\n}}\n"
    );
    let binary = env::temp_dir().join(format!("packet-traits-socket-abi-{}", process::id()));
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include");
    let mut compiler = Command::new("cc")
        .args(["-x", "c", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&binary)
        .arg("-I")
        .arg(include)
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("running cc: {error}; install a C compiler"));
    compiler.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success(), "the header does not compile:\n{program}");
    let output = Command::new(&binary).output();
    fs::remove_file(&binary).unwrap();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn rust_and_c_agree_on_every_number_and_struct() {
    let mut expressions = Vec::new();
    let mut expected = String::new();
    let mut same = |name: String, expression: String, value: i64| {
        expected += &format!("{name} {value}\n");
        expressions.push((name, expression));
    };

    macro_rules! constants {
        ($($name:ident)+) => {$(
            same(stringify!($name).to_owned(), stringify!($name).to_owned(), abi::$name as i64);
        )+};
    }
    constants! {
        SOL_TRAITS SOL_TRAITS_DATAGRAM SOL_TRAITS_DATAGRAMS
        TRAITS_KEYS SAVE_SYN_TRAITS RCV_TRAITS SYN_TRAITS LAST_TRAITS SOCKET_TRAITS NEXT_TRAITS TRAITS_ALL
        TRAITS_KEY_MAX TRAITS_VALUES_MAX TRAITS_BATCH_MAX TRAITS_FOUND TRAITS_HEADER_LEN
    }

    macro_rules! structs {
        ($($name:ident { $($field:ident = $c_field:literal)+ })+) => {$(
            let name = stringify!($name);
            same(name.to_owned(), format!("sizeof(struct {name})"), size_of::<abi::$name>() as i64);
            same(format!("{name}.align"), format!("_Alignof(struct {name})"), align_of::<abi::$name>() as i64);
            $(
                let field = $c_field;
                let offset = offset_of!(abi::$name, $field) as i64;
                same(format!("{name}.{field}"), format!("offsetof(struct {name}, {field})"), offset);
            )+
        )+};
    }
    structs! {
        traits_key {
            name = "name" number = "number" key_type = "type" size = "size" merge = "merge" offset = "offset"
            distance = "distance"
        }
        traits { present = "present" flags = "flags" mark = "mark" values = "values" }
        traits_receive {
            enabled = "enabled" traits_len = "traits_len" flow_len = "flow_len" packet_len = "packet_len" ring = "ring"
            slots = "slots" generation = "generation" slot_len = "slot_len" instance = "instance"
        }
    }

    assert_eq!(run(&expressions), expected);
}
