// Verified bytes of images that never got ready, kept for a while after the
// image was removed, for a retry of the same name, uuid and size. They lie in
// .bim/partial: the temp file and its journal, as an ingest left them.
//
// All functions block. Thread-safety: one caller at a time for an image.
#pragma once

#include <chrono>
#include <cstdint>

#include "pkg/base/status.h"
#include "pkg/store/disk.h"
#include "pkg/store/layout.h"

namespace bim::store {

inline constexpr char kParkedDir[] = ".bim/partial";
// More than these are not kept: the oldest go first.
inline constexpr size_t kMaxParked = 16;

// Moves what is in work of `key` there, if a journal vouches for bytes of it;
// what was parked of it before goes. OK, too, when there is nothing to park.
base::Status Park(const Disk& disk, const ImageKey& key);

// Moves it back to the image's place, where nothing may lie: an ingest goes on
// with it. `size`: of the whole file, 0: not stated. False: nothing that fits
// was parked. What was parked of the image and does not fit is deleted.
base::Result<bool> Unpark(const Disk& disk, const ImageKey& key, uint64_t size);

// Deletes what was parked longer ago than `age`, and what is too much.
base::Status SweepParked(const Disk& disk, std::chrono::seconds age);

}  // namespace bim::store
