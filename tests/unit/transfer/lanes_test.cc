// Pull() with several connections: a scripted server whose connections are
// slow, break and lie, each in its own way.
#include "pkg/transfer/lanes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>

#include "pkg/store/publish.h"
#include "pkg/transfer/pull.h"
#include "tests/unit/store/scratch.h"

namespace bim::transfer {
namespace {

using base::Code;
using std::chrono::milliseconds;
using test::AsBytes;
using test::Exists;
using test::RandomBytes;
using test::ReadAll;
using test::ScratchDisk;
using test::Sha512;
using Clock = std::chrono::steady_clock;

const store::ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kMiB = 1024 * 1024;
constexpr size_t kPiece = 128 * 1024;
// More than is read over one connection anyway.
constexpr size_t kSize = 33 * kMiB + 512;

const std::string& Content() {
  static const std::string content = RandomBytes(kSize, 7);
  return content;
}

// How one read goes.
struct Script {
  milliseconds delay{2};  // between two pieces
  uint64_t after = UINT64_MAX;
  // After so many bytes; kNone: as if that were all.
  Outcome end;
  bool before_head = false;
  int64_t shift = 0;  // the head's offset, and the bytes, are of elsewhere
  std::optional<std::string> validator;
  std::optional<uint64_t> size;
  bool too_much = false;       // does not stop at the range's end
  uint64_t flip = UINT64_MAX;  // a wrong byte, counted from the range's begin
  bool until_alone = false;    // waits until no other read is at work
};

Outcome Broken() {
  return {Failure::kTransient, base::UnavailableError("connection reset"), {}};
}
Outcome Forbidden() {
  return {Failure::kPermanent, base::PermissionDeniedError("403"), {}};
}

struct Site {
  std::mutex mutex;
  std::condition_variable_any changed;
  std::string content = Content();
  std::string validator = "\"v1\"";
  bool as_zeros = false;
  bool offers_clones = true;
  // Of the nth read (0: the first connection's), on the mth connection.
  std::function<Script(size_t, size_t)> script = [](size_t, size_t) {
    return Script();
  };
  std::function<void(uint64_t)> on_bytes;  // sent so far by all, locked
  size_t connections = 1;
  size_t reads = 0;
  size_t active = 0;
  size_t most_active = 0;
  uint64_t sent = 0;
  uint64_t dies_after = UINT64_MAX;  // bytes sent: then all break
  std::vector<Range> ranges;
};

class SiteSource : public Source {
 public:
  SiteSource(Site& site, size_t connection)
      : site_(site), connection_(connection) {}

  std::unique_ptr<Source> Clone() override {
    std::lock_guard lock(site_.mutex);
    if (!site_.offers_clones) return nullptr;
    return std::make_unique<SiteSource>(site_, site_.connections++);
  }

  Outcome Read(const Range& range, const std::string& expected,
               SourceSink& sink, std::stop_token stop) override {
    Script script;
    SourceHead head;
    {
      std::lock_guard lock(site_.mutex);
      script = site_.script(site_.reads++, connection_);
      site_.ranges.push_back(range);
      site_.most_active = std::max(site_.most_active, ++site_.active);
      site_.changed.notify_all();
      head.size = script.size.value_or(site_.content.size());
      head.validator = script.validator.value_or(site_.validator);
      const bool any = range.begin == 0 && range.end == Range::kOpen;
      head.offset = any || expected == head.validator ? range.begin : 0;
      head.ranges = true;
    }
    Outcome outcome = Send(range, head, script, sink, stop);
    std::lock_guard lock(site_.mutex);
    --site_.active;
    site_.changed.notify_all();
    return outcome;
  }

 private:
  Outcome Send(const Range& range, SourceHead head, const Script& script,
               SourceSink& sink, const std::stop_token& stop) {
    if (script.until_alone) {
      std::unique_lock lock(site_.mutex);
      // Not just between two reads.
      while (!stop.stop_requested()) {
        site_.changed.wait(lock, stop, [&] { return site_.active == 1; });
        const size_t reads = site_.reads;
        site_.changed.wait_for(lock, stop, milliseconds(100),
                               [&] { return site_.reads != reads; });
        if (site_.reads == reads && site_.active == 1) break;
      }
    }
    if (script.before_head) return script.end;
    head.offset += script.shift;
    if (auto status = sink.OnHead(head); !status.ok()) {
      return {Failure::kPermanent, status, {}};
    }
    const uint64_t end = script.too_much
                             ? site_.content.size()
                             : std::min(range.end, site_.content.size());
    uint64_t given = 0;
    for (uint64_t at = head.offset; at < end;) {
      if (script.delay.count() > 0) {
        std::unique_lock lock(site_.mutex);
        // The first one is slow enough that others are asked for.
        const bool alone = site_.reads == 1;
        site_.changed.wait_for(lock, stop, script.delay * (alone ? 3 : 1),
                               [] { return false; });
      }
      if (stop.stop_requested()) {
        return {Failure::kCancelled, base::CancelledError("stopped"), {}};
      }
      if (given >= script.after) return script.end;
      const size_t count = static_cast<size_t>(
          std::min<uint64_t>({kPiece, end - at, script.after - given}));
      std::string data = site_.content.substr(at, count);
      if (script.flip >= given && script.flip < given + count) {
        data[script.flip - given] ^= 1;
      }
      const bool zeros =
          site_.as_zeros && data.find_first_not_of('\0') == std::string::npos;
      {
        std::lock_guard lock(site_.mutex);
        if (site_.sent >= site_.dies_after) return Broken();
        site_.sent += count;
        if (site_.on_bytes) site_.on_bytes(site_.sent);
      }
      const auto status =
          zeros ? sink.OnZeros(count) : sink.OnData(AsBytes(data));
      if (!status.ok()) return {Failure::kPermanent, status, {}};
      at += count;
      given += count;
    }
    return script.after <= given ? script.end : Outcome{};
  }

  Site& site_;
  const size_t connection_;
};

class LanesTest : public ::testing::Test {
 protected:
  void Open(store::IngestOptions options = {}) {
    ingest_.reset();
    auto ingest = store::Ingest::Open(scratch_.disk, kKey, std::move(options));
    ASSERT_TRUE(ingest.ok()) << ingest.status().ToString();
    ingest_ = *std::move(ingest);
  }
  PullResult Run(size_t connections = 4, std::stop_token stop = {}) {
    if (!ingest_) Open();
    spec_.connections = connections;
    spec_.progress = &progress_;
    SiteSource source(site_, 0);
    return Pull(
        source, *ingest_, spec_, [] {}, stop);
  }
  void ExpectPublished(const PullResult& result) {
    ASSERT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    ASSERT_TRUE(result.record);
    EXPECT_EQ(result.record->sha512, Sha512(site_.content));
    EXPECT_TRUE(ReadAll(scratch_.Path(store::DataFile(kKey))) == site_.content);
    EXPECT_EQ(site_.active, 0u);
  }
  void ExpectFailed(const PullResult& result, Failure failure) {
    EXPECT_EQ(result.outcome.failure, failure)
        << result.outcome.status.ToString();
    EXPECT_FALSE(result.record);
    EXPECT_FALSE(Exists(scratch_.Path(store::DataFile(kKey))));
    EXPECT_EQ(site_.active, 0u);
  }
  void Again() {
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
    site_.connections = 1;
    site_.reads = site_.most_active = 0;
    site_.sent = 0;
    site_.ranges.clear();
    progress_.wire_bytes = 0;
  }

  ScratchDisk scratch_;
  Site site_;
  PullSpec spec_;
  Progress progress_;
  std::unique_ptr<store::Ingest> ingest_;
};

TEST_F(LanesTest, TheContentIsRightWithSoManyConnections) {
  for (const size_t connections : {1, 3, 8}) {
    SCOPED_TRACE(connections);
    ExpectPublished(Run(connections));
    EXPECT_LE(site_.most_active, connections);
    EXPECT_EQ(connections == 1, site_.reads == 1);
    EXPECT_EQ(connections == 1, site_.most_active == 1);
    // What a cut left of a piece is all that comes twice.
    EXPECT_GE(progress_.wire_bytes, kSize);
    EXPECT_LE(progress_.wire_bytes, kSize + kPiece);
    Again();
  }
}

TEST_F(LanesTest, EachAtItsOwnSpeed) {
  site_.script = [](size_t, size_t connection) {
    Script script;
    script.delay = milliseconds(connection % 3 * 3 + 1);
    return script;
  };
  ExpectPublished(Run(4));
}

TEST_F(LanesTest, OneConnectionIsAllThereIs) {
  site_.offers_clones = false;
  site_.script = [](size_t, size_t) {
    Script script;
    script.delay = milliseconds(0);
    return script;
  };
  ExpectPublished(Run(8));
  EXPECT_EQ(site_.reads, 1u);
}

TEST_F(LanesTest, ZerosAreNotOnTheWire) {
  std::fill(site_.content.begin() + 20 * kMiB,
            site_.content.begin() + 30 * kMiB, '\0');
  site_.as_zeros = true;
  ExpectPublished(Run(3));
  EXPECT_LE(progress_.wire_bytes, kSize - 10 * kMiB + 2 * kPiece);
  EXPECT_GE(progress_.wire_bytes, kSize - 10 * kMiB - 2 * kPiece);
}

TEST_F(LanesTest, AConnectionThatFailsIsNotTheTransfers) {
  struct Case {
    const char* name;
    std::function<void(Script&)> change;
  };
  const Case cases[] = {
      {"breaks", [](Script& s) { s.after = kMiB + 77, s.end = Broken(); }},
      {"refuses", [](Script& s) { s.before_head = true, s.end = Forbidden(); }},
      {"forbids later", [](Script& s) { s.after = 5, s.end = Forbidden(); }},
      {"ends early", [](Script& s) { s.after = kMiB + 5; }},
      {"begins elsewhere", [](Script& s) { s.shift = 4096; }},
      {"sends too much", [](Script& s) { s.too_much = true; }},
  };
  for (size_t i = 0; i < std::size(cases); i += 2) {
    SCOPED_TRACE(std::string(cases[i].name) + ", " + cases[i + 1].name);
    site_.script = [&](size_t read, size_t) {
      Script script;
      if (read == 1) cases[i].change(script);
      if (read == 3) cases[i + 1].change(script);
      return script;
    };
    ExpectPublished(Run(3));
    EXPECT_GT(site_.reads, 3u);
    Again();
    if (HasFailure()) return;
  }
}

TEST_F(LanesTest, TheLastOneToFailIsNotTheTransfers) {
  // All else is done when the other connection is refused.
  site_.script = [&](size_t read, size_t) {
    Script script;
    if (read == 1) {
      script.until_alone = script.before_head = true;
      script.end = Forbidden();
    }
    return script;
  };
  ExpectPublished(Run(2));
}

TEST_F(LanesTest, NoConnectionButTheFirstWorks) {
  // It was cut for others. What they cannot read it goes on to read itself, or,
  // when it had come to its cut before, begins anew as one stream.
  for (const bool permanent : {false, true}) {
    site_.script = [&](size_t read, size_t) {
      Script script;
      if (read > 0) {
        script.before_head = true;
        script.end = permanent ? Forbidden() : Broken();
      }
      return script;
    };
    PullResult result = Run(3);
    if (!permanent && result.outcome.failure != Failure::kNone) {
      ExpectFailed(result, Failure::kTransient);
      site_.script = [](size_t, size_t) { return Script(); };
      result = Run(1);
    }
    ExpectPublished(result);
    Again();
  }
}

TEST_F(LanesTest, AllBreakAndItGoesOn) {
  site_.dies_after = 20 * kMiB;
  ExpectFailed(Run(3), Failure::kTransient);
  const uint64_t came = ingest_->stored_bytes();
  EXPECT_GE(came, 16 * kMiB);
  site_.dies_after = UINT64_MAX;
  site_.sent = 0;
  // In another process.
  ingest_.reset();
  scratch_.Restart();
  const PullResult result = Run(3);
  ExpectPublished(result);
  EXPECT_GT(result.resumed_bytes, came - 4 * kMiB);
  EXPECT_LE(site_.sent, kSize - result.resumed_bytes + kMiB);
}

TEST_F(LanesTest, TheFirstBreaksWhileOthersWork) {
  site_.script = [](size_t read, size_t) {
    Script script;
    if (read == 0) {
      // As slow as can be, so that it is not cut before.
      script.delay = milliseconds(10);
      script.after = 4 * kMiB - 5;
      script.end = Broken();
    }
    return script;
  };
  PullResult result = Run(4);
  for (int i = 0; i < 3 && result.outcome.failure == Failure::kTransient; ++i) {
    EXPECT_FALSE(Exists(scratch_.Path(store::DataFile(kKey))));
    result = Run(4);
  }
  ExpectPublished(result);
  EXPECT_LE(site_.sent, kSize + 12 * kMiB);
}

TEST_F(LanesTest, AChangedContentIsNeverMixed) {
  const std::string other = RandomBytes(kSize, 8);
  for (const bool size : {false, true}) {
    for (const size_t from : {size ? 3 : 1}) {
      SCOPED_TRACE(testing::Message() << size << " " << from);
      site_.content = Content();
      site_.validator = "\"v1\"";
      site_.script = [&](size_t read, size_t) {
        Script script;
        if (read >= from) {
          if (size) script.size = kSize + 512;
          if (!size) script.validator = "\"v2\"";
        }
        return script;
      };
      ExpectFailed(Run(3), Failure::kTransient);
      EXPECT_FALSE(ingest_->begun());
      EXPECT_FALSE(Exists(scratch_.Path(store::TempFile(kKey))));
      site_.content = other;
      site_.validator = "\"v2\"";
      site_.script = [](size_t, size_t) { return Script{milliseconds(0)}; };
      const PullResult result = Run(3);
      ExpectPublished(result);
      EXPECT_EQ(result.resumed_bytes, 0u);
      Again();
      if (HasFailure()) return;
    }
  }
}

TEST_F(LanesTest, WrongBytesAgainstAReferenceAreReadAgain) {
  auto reference = std::make_shared<store::ImageRecord>();
  {
    ScratchDisk made;
    auto ingest = store::Ingest::Open(made.disk, kKey, {});
    BIM_ASSERT_OK((*ingest)->Begin(kSize, "x"));
    BIM_ASSERT_OK((*ingest)->Append(AsBytes(Content()), {}));
    ASSERT_TRUE((*ingest)->Commit({}).ok());
    *reference = *store::ReadRecord(made.disk->root(), kKey, true);
  }
  for (const bool trust : {false, true}) {
    SCOPED_TRACE(trust);
    site_.script = [](size_t read, size_t) {
      Script script;
      if (read == 1 || read == 2) script.flip = 600'000 * read;
      return script;
    };
    store::IngestOptions options;
    options.reference = reference;
    options.trust_reference = trust;
    Open(options);
    ExpectPublished(Run(4));
    Again();
  }
}

TEST_F(LanesTest, AStopEndsAllSoon) {
  for (const uint64_t after : {uint64_t{0}, 12 * kMiB}) {
    SCOPED_TRACE(after);
    std::stop_source stop;
    std::optional<Clock::time_point> stopped;
    // Lanes that are slow, some of them in the middle of nothing.
    site_.script = [](size_t read, size_t) {
      Script script;
      if (read > 2) script.delay = milliseconds(60'000);
      return script;
    };
    std::thread stopper;
    site_.on_bytes = [&](uint64_t sent) {
      if (sent < after || stopped) return;
      stopped = Clock::now();
      // Not here: it runs callbacks that want what is held.
      stopper = std::thread([&] { stop.request_stop(); });
    };
    ExpectFailed(Run(4, stop.get_token()), Failure::kCancelled);
    ASSERT_TRUE(stopped);
    EXPECT_LT(Clock::now() - *stopped, std::chrono::seconds(3));
    stopper.join();
    site_.on_bytes = nullptr;
    // What came is kept.
    site_.script = [](size_t, size_t) { return Script{milliseconds(1)}; };
    Open();
    const PullResult result = Run(2);
    ExpectPublished(result);
    EXPECT_TRUE(after < 4 * kMiB || result.resumed_bytes > 0);
    Again();
  }
}

TEST_F(LanesTest, HeldBackByALimitOneConnectionIsEnough) {
  exec::RateLimiter limiter(60 * kMiB);
  spec_.limiter = &limiter;
  site_.script = [](size_t, size_t) { return Script{milliseconds(0)}; };
  ExpectPublished(Run(8));
  EXPECT_EQ(site_.reads, 1u);
  EXPECT_EQ(progress_.wire_bytes, kSize);
}

TEST_F(LanesTest, WrongChecksumOfWhatAllOfThemGave) {
  store::IngestOptions options;
  options.expect_sha512 = Sha512("other");
  Open(options);
  ExpectFailed(Run(4), Failure::kPermanent);
  EXPECT_FALSE(Exists(scratch_.Path(store::TempFile(kKey))));
}

}  // namespace
}  // namespace bim::transfer
