//! Setting any field of the knobs' struct literal, annotated or not: what the arms of a comparison differ by.

use std::collections::BTreeMap;
use std::ops::Range;

use syn::spanned::Spanned;

use super::{KnobError, LARGEST_RECIPE, constant, file};
use crate::parsing::{self, Refusal};

/// The recipe with fields of the constant `name` set in place to Rust expressions; all else stays as it was, byte for
/// byte. Where a field holds an enum value, a bare name is another variant of it.
///
/// # Errors
/// When the recipe does not parse or has no such constant, a field is not there, or a value is no expression.
pub fn set(source: &str, name: &str, values: &BTreeMap<String, String>) -> Result<String, KnobError> {
    parsing::deep(|| replaced(source, name, values))
}

fn replaced(source: &str, name: &str, values: &BTreeMap<String, String>) -> Result<String, KnobError> {
    let offset = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let file = file(&source[offset..])?;
    let literal = constant(&file, name)?;
    let mut fields: BTreeMap<String, Range<usize>> = BTreeMap::new();
    let mut names = Vec::new();
    for field in &literal.fields {
        let syn::Member::Named(field_name) = &field.member else { continue };
        names.push(field_name.to_string());
        let mut span = field.expr.span().byte_range();
        let given = values.get(&field_name.to_string());
        if let (syn::Expr::Path(path), Some(given)) = (&field.expr, given)
            && path.path.segments.len() > 1
            && is::<syn::Ident>(given).is_ok()
            && let Some(variant) = path.path.segments.last()
        {
            span = variant.span().byte_range();
        }
        fields.insert(field_name.to_string(), span.start + offset..span.end + offset);
    }
    let mut edits = Vec::new();
    for (field, value) in values {
        let span = fields.get(field).ok_or_else(|| KnobError::NoField {
            constant: name.to_owned(),
            field: field.clone(),
            known: names.join(", "),
        })?;
        if let Err(e) = is::<syn::Expr>(value) {
            let (knob, value) = (field.clone(), value.clone());
            return Err(KnobError::NoExpression { knob, value, message: e.to_string() });
        }
        edits.push((span.clone(), value));
    }
    edits.sort_by_key(|(span, _)| span.start);
    let mut out = String::with_capacity(source.len() + 64);
    let mut copied = 0;
    for (span, value) in edits {
        out.push_str(&source[copied..span.start]);
        out.push_str(value);
        copied = span.end;
    }
    out.push_str(&source[copied..]);
    Ok(out)
}

/// Whether a text is a `T`.
fn is<T: syn::parse::Parse>(text: &str) -> Result<(), Refusal> {
    syn::parse2::<T>(parsing::tokens(text, LARGEST_RECIPE)?).map(drop).map_err(Refusal::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "use a::B;\nconst K: T = T {\n    rate: 1e-3, // search: log 1e-4..1e-2\n    scale: Scale::Twn,\n    \
                          levels: 4,\n};\nfn main() {}\n";

    fn with(values: &[(&str, &str)]) -> Result<String, KnobError> {
        let values = values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        set(RECIPE, "K", &values)
    }

    #[test]
    fn any_field_is_set_in_place() {
        let set = with(&[("levels", "8"), ("rate", "0.5"), ("scale", "Mse")]).unwrap();
        assert_eq!(set, RECIPE.replace("4,", "8,").replace("1e-3,", "0.5,").replace("Scale::Twn", "Scale::Mse"));
        let whole = with(&[("scale", "Scale::Fit { steps: 3 }")]).unwrap();
        assert_eq!(whole, RECIPE.replace("Scale::Twn", "Scale::Fit { steps: 3 }"));
        assert_eq!(with(&[]).unwrap(), RECIPE);
    }

    #[test]
    fn what_cannot_be_set_says_why() {
        let refused = |name: &str, value: &str| with(&[(name, value)]).unwrap_err().to_string();
        assert_eq!(refused("rte", "1.0"), "constant K of the recipe has no field `rte`; it has rate, scale, levels");
        assert!(refused("rate", "1.0, b: 2").contains("`1.0, b: 2` is no Rust expression for `rate`"));
        assert!(refused("rate", "").contains("no Rust expression"));
        assert!(set(RECIPE, "OTHER", &BTreeMap::new()).is_err());
    }
}
