// "Did you mean": the known word nearest to one that is not known.
//
// Pure functions; thread-safe.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace bim::daemon {

// The fewest insertions, deletions, replacements and swaps of neighbours that
// make `b` of `a`.
size_t EditDistance(std::string_view a, std::string_view b);

// The nearest of `known` when it is near enough to be a typing mistake (a
// third of its length, at least one edit), else empty. The first one wins a
// tie.
std::string Nearest(std::string_view word, std::span<const std::string> known);

// "; did you mean \"listen\"?", or empty when nothing is near.
std::string DidYouMean(std::string_view word,
                       std::span<const std::string> known);

}  // namespace bim::daemon
