#include "pkg/transfer/pull.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>

#include "pkg/store/publish.h"
#include "tests/unit/store/scratch.h"

namespace bim::transfer {
namespace {

using base::Code;
using test::AsBytes;
using test::Exists;
using test::RandomBytes;
using test::ReadAll;
using test::ScratchDisk;
using test::Sha512;
using ::testing::HasSubstr;

const store::ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kMiB = 1024 * 1024;

// Yields `content` and plays a script: where it breaks, what it claims.
class ScriptedSource : public Source {
 public:
  std::string content;
  std::string validator = "\"v1\"";
  bool tells_size = true;
  std::optional<uint64_t> claimed_size;
  std::string content_type;
  size_t piece = 100'000;
  bool as_zeros = false;  // runs of zeros as such
  // Of each Read: after how many bytes of it, and how, it ends.
  struct End {
    uint64_t after = ~uint64_t{0};
    Outcome outcome;
    bool before_head = false;
  };
  std::deque<End> ends;
  std::function<void(uint64_t)> on_piece;

  std::vector<std::pair<uint64_t, std::string>> reads;

  Outcome Read(const Range& range, const std::string& expected,
               SourceSink& sink, std::stop_token stop) override {
    const uint64_t offset = range.begin;
    reads.emplace_back(offset, expected);
    End end;
    if (!ends.empty()) {
      end = ends.front();
      ends.pop_front();
    }
    if (end.before_head) return end.outcome;
    SourceHead head;
    if (tells_size) head.size = claimed_size.value_or(content.size());
    head.validator = validator;
    head.offset = offset > 0 && expected == validator ? offset : 0;
    head.content_type = content_type;
    if (auto status = sink.OnHead(head); !status.ok()) {
      return {Failure::kPermanent, status, std::nullopt};
    }
    uint64_t given = 0;
    for (uint64_t at = head.offset; at < content.size();) {
      if (stop.stop_requested()) {
        return {Failure::kCancelled, base::CancelledError("stopped"), {}};
      }
      if (given >= end.after) return end.outcome;
      const size_t count = static_cast<size_t>(
          std::min<uint64_t>({piece, content.size() - at, end.after - given}));
      const std::string_view data(content.data() + at, count);
      const bool zeros =
          as_zeros && data.find_first_not_of('\0') == std::string_view::npos;
      const auto status =
          zeros ? sink.OnZeros(count) : sink.OnData(AsBytes(data));
      if (!status.ok()) return {Failure::kPermanent, status, std::nullopt};
      at += count;
      given += count;
      if (on_piece) on_piece(at);
    }
    return end.after <= given ? end.outcome : Outcome{};
  }
};

Outcome Broken() {
  return {Failure::kTransient, base::UnavailableError("connection reset"), {}};
}

class PullTest : public ::testing::Test {
 protected:
  PullTest() { source_.content = RandomBytes(5 * kMiB + 512, 3); }
  void Open(store::IngestOptions options = {}) {
    ingest_.reset();
    auto ingest = store::Ingest::Open(scratch_.disk, kKey, std::move(options));
    ASSERT_TRUE(ingest.ok()) << ingest.status().ToString();
    ingest_ = *std::move(ingest);
  }
  PullResult Run(PullSpec spec = {}, std::stop_token stop = {}) {
    if (!ingest_) Open();
    return Pull(
        source_, *ingest_, spec, [this] { ++on_bytes_; }, stop);
  }
  void ExpectPublished(const PullResult& result) {
    ASSERT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    BIM_EXPECT_OK(result.outcome.status);
    ASSERT_TRUE(result.record);
    EXPECT_EQ(result.record->sha512, Sha512(source_.content));
    EXPECT_TRUE(ReadAll(scratch_.Path(store::DataFile(kKey))) ==
                source_.content);
  }
  void ExpectFailed(const PullResult& result, Failure failure, Code code) {
    EXPECT_EQ(result.outcome.failure, failure)
        << result.outcome.status.ToString();
    EXPECT_EQ(result.outcome.status.code(), code)
        << result.outcome.status.ToString();
    EXPECT_FALSE(result.record);
    EXPECT_FALSE(Exists(scratch_.Path(store::DataFile(kKey))));
  }
  void ExpectNothingKept() {
    ingest_.reset();
    EXPECT_FALSE(Exists(scratch_.Path(store::TempFile(kKey))));
    EXPECT_FALSE(Exists(scratch_.Path(store::RecordFile(kKey))));
  }

  ScratchDisk scratch_;
  ScriptedSource source_;
  std::unique_ptr<store::Ingest> ingest_;
  int on_bytes_ = 0;
};

TEST_F(PullTest, Whole) {
  ExpectPublished(Run());
  EXPECT_EQ(on_bytes_, 1);
  EXPECT_EQ(source_.reads.size(), 1u);
}

TEST_F(PullTest, SizesAroundTheHeadInPieces) {
  for (size_t size : {512, 1024, 3584, 4096, 4608, 8192}) {
    for (size_t piece : {1, 511, 4095, 4096, 4097, 10'000}) {
      for (bool tells : {true, false}) {
        SCOPED_TRACE(::testing::Message() << size << " " << piece << tells);
        source_.content = RandomBytes(size, 5);
        source_.piece = piece;
        source_.tells_size = tells;
        Open();
        ExpectPublished(Run());
        ingest_.reset();
        BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
      }
    }
  }
}

TEST_F(PullTest, ZerosInAllPlaces) {
  for (uint32_t seed = 0; seed < 6; ++seed) {
    source_.content = RandomBytes(3 * kMiB, seed);
    std::fill_n(source_.content.begin() + 512 * seed, 2 * kMiB, '\0');
    source_.as_zeros = true;
    source_.piece = 512 * (1 + seed * 3);
    Open();
    ExpectPublished(Run());
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
  }
  source_.content.assign(20 * kMiB, '\0');
  source_.piece = 20 * kMiB;
  Open();
  ExpectPublished(Run());
}

TEST_F(PullTest, ResumesInTheSameIngest) {
  source_.ends.push_back({2 * kMiB + 77, Broken()});
  ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
  const PullResult again = Run();
  ExpectPublished(again);
  EXPECT_EQ(source_.reads[1].first, 2 * kMiB + 77);
  EXPECT_EQ(source_.reads[1].second, "\"v1\"");
  EXPECT_EQ(again.resumed_bytes, 2 * kMiB + 77);
  EXPECT_EQ(on_bytes_, 2);
}

TEST_F(PullTest, ResumesInAnotherProcess) {
  source_.ends.push_back({2 * kMiB + 77, Broken()});
  ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
  ingest_.reset();
  scratch_.Restart();
  ExpectPublished(Run());
  EXPECT_EQ(source_.reads[1].first, 2 * kMiB);
}

TEST_F(PullTest, EveryByteBreaks) {
  source_.content = RandomBytes(512 * 20, 9);
  source_.piece = 700;
  for (uint64_t after = 0; after < source_.content.size(); after += 97) {
    source_.ends.push_back({after, Broken()});
    Open();
    ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
    ExpectPublished(Run());
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
  }
}

TEST_F(PullTest, StartsOverWhenTheContentChanged) {
  for (bool same_process : {true, false}) {
    source_.content = RandomBytes(5 * kMiB, 3);
    source_.validator = "\"v1\"";
    source_.ends.push_back({3 * kMiB, Broken()});
    Open();
    ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
    source_.content = RandomBytes(4 * kMiB, 4);
    source_.validator = "\"v2\"";
    if (!same_process) Open();
    const PullResult again = Run();
    ExpectPublished(again);
    EXPECT_EQ(again.resumed_bytes, 0u);
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
  }
}

TEST_F(PullTest, EndsEarlyWithoutSayingSo) {
  source_.claimed_size = source_.content.size() + 512;
  ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
}

TEST_F(PullTest, EndsWithinTheHead) {
  source_.content.resize(1000);
  source_.claimed_size = kMiB;
  ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
}

TEST_F(PullTest, MoreThanAnnounced) {
  source_.claimed_size = source_.content.size() - 512;
  ExpectFailed(Run(), Failure::kPermanent, Code::kOutOfRange);
  ExpectNothingKept();
}

TEST_F(PullTest, WrongSizes) {
  ExpectFailed(Run({source_.content.size() + 512, 0}), Failure::kPermanent,
               Code::kFailedPrecondition);
  ExpectNothingKept();
  ExpectFailed(Run({0, source_.content.size() - 1}), Failure::kPermanent,
               Code::kFailedPrecondition);
  ExpectNothingKept();
  ExpectPublished(Run({source_.content.size(), source_.content.size()}));
}

TEST_F(PullTest, WrongSizesThatAreNotTold) {
  source_.tells_size = false;
  ExpectFailed(Run({source_.content.size() + 512, 0}), Failure::kPermanent,
               Code::kFailedPrecondition);
  ExpectNothingKept();
  ExpectFailed(Run({source_.content.size() - 512, 0}), Failure::kPermanent,
               Code::kFailedPrecondition);
  ExpectNothingKept();
  ExpectPublished(Run({source_.content.size(), 0}));
}

TEST_F(PullTest, LimitHoldsForASourceThatDoesNotTellItsSize) {
  source_.tells_size = false;
  ExpectFailed(Run({0, kMiB}), Failure::kPermanent, Code::kFailedPrecondition);
  ExpectNothingKept();
}

TEST_F(PullTest, OddSizeAndEmptyFile) {
  source_.content.resize(5001);
  ExpectFailed(Run(), Failure::kPermanent, Code::kFailedPrecondition);
  ExpectNothingKept();
  source_.tells_size = false;
  ExpectFailed(Run(), Failure::kPermanent, Code::kFailedPrecondition);
  ExpectNothingKept();
  source_.content.clear();
  ExpectFailed(Run(), Failure::kPermanent, Code::kFailedPrecondition);
  ExpectNothingKept();
  source_.tells_size = true;
  ExpectFailed(Run(), Failure::kPermanent, Code::kFailedPrecondition);
  ExpectNothingKept();
}

TEST_F(PullTest, AnErrorPageIsNamed) {
  for (bool tells : {true, false}) {
    source_.tells_size = tells;
    source_.content_type = "text/html";
    source_.content = "<!DOCTYPE html><html><title>Log in</title></html>\n";
    const PullResult result = Run();
    ExpectFailed(result, Failure::kPermanent, Code::kFailedPrecondition);
    EXPECT_THAT(result.outcome.status.message(), HasSubstr("HTML"));
    ExpectNothingKept();
  }
}

TEST_F(PullTest, AGzipIsRefusedBeforeAnythingIsStored) {
  source_.content.replace(0, 4, "\x1f\x8b\x08\x00", 4);
  source_.on_piece = [&](uint64_t) {
    EXPECT_FALSE(Exists(scratch_.Path(store::TempFile(kKey))));
  };
  ExpectFailed(Run(), Failure::kPermanent, Code::kFailedPrecondition);
  ExpectNothingKept();
}

TEST_F(PullTest, WrongChecksumIsPermanentAndKeepsNothing) {
  store::IngestOptions options;
  options.expect_sha512 = Sha512("other");
  Open(options);
  ExpectFailed(Run(), Failure::kPermanent, Code::kFailedPrecondition);
  ExpectNothingKept();
}

TEST_F(PullTest, CancelledStaysResumable) {
  std::stop_source stop;
  source_.on_piece = [&](uint64_t at) {
    if (at >= 3 * kMiB) stop.request_stop();
  };
  ExpectFailed(Run({}, stop.get_token()), Failure::kCancelled,
               Code::kCancelled);
  ingest_.reset();
  source_.on_piece = nullptr;
  ExpectPublished(Run());
  EXPECT_GE(source_.reads[1].first, 2 * kMiB);
}

TEST_F(PullTest, CancelledBeforeItBegan) {
  std::stop_source stop;
  stop.request_stop();
  ExpectFailed(Run({}, stop.get_token()), Failure::kCancelled,
               Code::kCancelled);
}

TEST_F(PullTest, ARefusalBeforeAnyByteKeepsWhatIsThere) {
  source_.ends.push_back({3 * kMiB, Broken()});
  source_.ends.push_back(
      {0, {Failure::kPermanent, base::NotFoundError("404"), {}}, true});
  ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
  ExpectFailed(Run(), Failure::kPermanent, Code::kNotFound);
  ingest_.reset();
  ExpectPublished(Run());
  EXPECT_EQ(source_.reads[2].first, 3 * kMiB);
}

TEST_F(PullTest, RetryAfterIsHandedOn) {
  source_.ends.push_back({0,
                          {Failure::kTransient, base::UnavailableError("503"),
                           std::chrono::seconds(17)}});
  const PullResult result = Run();
  ExpectFailed(result, Failure::kTransient, Code::kUnavailable);
  EXPECT_EQ(result.outcome.retry_after, std::chrono::seconds(17));
}

TEST_F(PullTest, PartialOfAnotherSizeThanExpectedIsDropped) {
  source_.ends.push_back({3 * kMiB, Broken()});
  ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
  source_.content.resize(4 * kMiB);
  Open();
  ExpectPublished(Run({4 * kMiB, 0}));
  EXPECT_EQ(source_.reads[1].first, 0u);
}

TEST_F(PullTest, ResumedHeadOfAnotherSizePublishesNothing) {
  for (int64_t delta : {-512, 512}) {
    source_.claimed_size.reset();
    source_.content = RandomBytes(5 * kMiB, 3);
    source_.ends.push_back({3 * kMiB, Broken()});
    Open();
    ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
    source_.content.resize(source_.content.size() + delta, 'x');
    const PullResult result = Run();
    EXPECT_NE(result.outcome.failure, Failure::kNone);
    EXPECT_FALSE(Exists(scratch_.Path(store::DataFile(kKey))));
    BIM_ASSERT_OK(ingest_->Discard());
  }
}

TEST_F(PullTest, PartialOfOtherBytesThanTheReferenceIsDropped) {
  // What lies there is of an older content; the copy to make is known good.
  source_.ends.push_back({3 * kMiB, Broken()});
  ExpectFailed(Run(), Failure::kTransient, Code::kUnavailable);
  source_.content = RandomBytes(source_.content.size(), 99);
  source_.validator = "file:1";
  auto reference = std::make_shared<store::ImageRecord>();
  {
    ScratchDisk other;
    auto made = store::Ingest::Open(other.disk, kKey, {});
    BIM_ASSERT_OK((*made)->Begin(source_.content.size(), "x"));
    BIM_ASSERT_OK((*made)->Append(AsBytes(source_.content), {}));
    ASSERT_TRUE((*made)->Commit({}).ok());
    *reference = *store::ReadRecord(other.disk->root(), kKey, true);
  }
  store::IngestOptions options;
  options.reference = reference;
  Open(options);
  ExpectPublished(Run());
}

TEST_F(PullTest, AllBytesWereThereAlready) {
  // The crash came between the last byte and the commit.
  {
    Open();
    BIM_ASSERT_OK(ingest_->Begin(source_.content.size(), source_.validator));
    BIM_ASSERT_OK(ingest_->Append(AsBytes(source_.content), {}));
    ingest_.reset();
  }
  const PullResult result = Run();
  ExpectPublished(result);
  EXPECT_EQ(result.resumed_bytes, source_.content.size());
}

// --- failing disks

TEST_F(PullTest, ALateOwnerIsADiskFailure) {
  auto owner = store::DecodeOwner(ReadAll(scratch_.Path(store::kOwnerFile)));
  owner->epoch += 1;
  test::WriteAll(scratch_.Path(store::kOwnerFile), store::EncodeOwner(*owner));
  ExpectFailed(Run(), Failure::kDisk, Code::kAborted);
}

}  // namespace
}  // namespace bim::transfer
