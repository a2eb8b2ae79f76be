//! What must hold for any text: shared by the property tests and the fuzz target (`fuzz/`).

use packet_traits_policy::{
    check::{CheckOptions, Texts, check},
    diagnostic::{Diagnostic, Severity},
    policy::Policy,
    print::print,
    source::{Sources, Span},
};

/// Checks a text, which may include itself as `other`. Whatever it is: nothing panics, every diagnostic is about a place in
/// its source and can be shown, and a policy that is accepted can be printed and read again.
pub fn assert_robust(text: &[u8]) {
    let loader = Texts::from_iter([("main", text), ("other", text)]);
    match check("main".as_ref(), &loader, &CheckOptions::default()) {
        Ok(checked) => {
            assert_shown(&checked.warnings, &checked.sources);
            assert!(checked.warnings.iter().all(|warning| warning.severity() == Severity::Warning));
            assert_printed(&checked.policy);
        }
        Err(rejected) => {
            assert_shown(&rejected.diagnostics, &rejected.sources);
            assert!(rejected.diagnostics.iter().any(|diagnostic| diagnostic.severity() == Severity::Error));
        }
    }
}

fn assert_shown(diagnostics: &[Diagnostic], sources: &Sources) {
    for diagnostic in diagnostics {
        for span in std::iter::once(diagnostic.span).chain(diagnostic.related.iter().map(|(span, _)| *span)) {
            let text = &sources.get(span.source).text;
            assert!(text.get(span.start..span.end).is_some(), "{diagnostic:?} is not in its source");
        }
        assert!(!diagnostic.message.is_empty() && !diagnostic.message.contains('\n'), "{diagnostic:?}");
        let shown = diagnostic.render(sources, false);
        assert!(shown.contains(diagnostic.code.name()), "{shown}");
        let report = diagnostic.report(sources);
        assert!((report.place.line, report.place.column) <= (report.place.end.line, report.place.end.column));
    }
}

fn assert_printed(policy: &Policy) {
    let text = print(policy);
    let again = check("main".as_ref(), &Texts::from_iter([("main", text.as_str())]), &CheckOptions::default());
    match again {
        Ok(again) => assert_eq!(placeless(again.policy), placeless(policy.clone()), "{text}"),
        Err(rejected) => {
            panic!("{}\n{text}", rejected.diagnostics[0].render(&rejected.sources, false))
        }
    }
}

/// The policy with all places the same.
pub fn placeless(mut policy: Policy) -> Policy {
    for key in &mut policy.keys {
        key.span = Span::default();
    }
    for block in &mut policy.blocks {
        block.span = Span::default();
        for rule in &mut block.rules {
            rule.span = Span::default();
        }
    }
    policy
}
