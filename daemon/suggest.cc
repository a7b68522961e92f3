#include "daemon/suggest.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace bim::daemon {

size_t EditDistance(std::string_view a, std::string_view b) {
  // Optimal string alignment: rows i - 2, i - 1 and i of the usual matrix.
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1),
      row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1,
                         last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

std::string Nearest(std::string_view word, std::span<const std::string> known) {
  std::string nearest;
  size_t best = SIZE_MAX;
  for (const std::string& candidate : known) {
    const size_t allowed = std::max<size_t>(1, candidate.size() / 3);
    const size_t distance = EditDistance(word, candidate);
    if (distance <= allowed && distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string DidYouMean(std::string_view word,
                       std::span<const std::string> known) {
  const std::string nearest = Nearest(word, known);
  return nearest.empty() ? "" : fmt::format("; did you mean \"{}\"?", nearest);
}

}  // namespace bim::daemon
