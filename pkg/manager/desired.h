// The desired record of an image on one disk, as JSON: what was Ensured, and
// how far backing off has come there. Pure.
#pragma once

#include <string>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/manager/plan.h"
#include "pkg/manager/types.h"

namespace bim::manager {

struct Desired {
  ImageSpec spec;
  bool removing = false;  // Remove began and has to be finished
  uint32_t attempts = 0;  // failed ones since the last success
  bool permanent = false;
  std::string last_error;  // not empty: the copy is failed
  std::optional<TimePoint> next_attempt;
  // Of a directed copy that was ready once: what its file was proven to be.
  // (Where Longhorn's cfg vouches for a file there is no other record of that.)
  std::optional<base::Digest> proven;
  friend bool operator==(const Desired&, const Desired&) = default;
};

std::string EncodeDesired(const Desired& desired);
// DATA_LOSS: damaged. FAILED_PRECONDITION: written by a newer version.
base::Result<Desired> DecodeDesired(std::string_view text);

}  // namespace bim::manager
