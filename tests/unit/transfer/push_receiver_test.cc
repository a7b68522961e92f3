#include "pkg/transfer/push_receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <random>
#include <thread>

#include "pkg/store/publish.h"
#include "tests/unit/http/sockets.h"
#include "tests/unit/store/scratch.h"

namespace bim::transfer {
namespace {

using base::Code;
using http::Conn;
using http::ConnectLocal;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using test::Exists;
using test::RandomBytes;
using test::ReadAll;
using test::ScratchDisk;
using test::Sha512;
using ::testing::HasSubstr;

const store::ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kMiB = 1024 * 1024;
constexpr milliseconds kSoon{20'000};

struct Reply {
  int status = 0;  // 0: none came
  std::string head;
  std::string body;
};

// One connection of a sender, kept between requests.
class Sender {
 public:
  explicit Sender(uint16_t port) : fd_(ConnectLocal(port)), conn_(fd_.get()) {}

  // Sends the head and what `body` has.
  void Start(const std::string& method, const std::string& target,
             std::string_view body, std::optional<uint64_t> length) {
    conn_.Send(method + " " + target + " HTTP/1.1\r\nHost: h\r\n" +
               (length ? "Content-Length: " + std::to_string(*length)
                       : "Transfer-Encoding: chunked") +
               "\r\n\r\n");
    conn_.Send(body);
  }
  void More(std::string_view bytes) { conn_.Send(bytes); }
  Reply Read() {
    Reply reply;
    reply.head = conn_.ReadHead();
    if (!reply.head.starts_with("HTTP/1.1 ")) return reply;
    reply.status = std::stoi(reply.head.substr(9, 3));
    const size_t at = reply.head.find("Content-Length: ");
    if (at != std::string::npos) {
      reply.body = conn_.ReadBytes(std::stoul(reply.head.substr(at + 16)));
    }
    return reply;
  }
  Reply Post(const std::string& target, std::string_view body = "") {
    Start("POST", target, body, body.size());
    return Read();
  }
  Reply Get(const std::string& target, const std::string& method = "GET") {
    conn_.Send(method + " " + target + " HTTP/1.1\r\nHost: h\r\n\r\n");
    return Read();
  }

  static std::string Target(const std::string& name, uint64_t begin,
                            uint64_t end) {
    return "/v1-ssync/" + name + "?begin=" + std::to_string(begin) +
           "&end=" + std::to_string(end);
  }
  Reply Open(uint64_t size) {
    return Get(Target("open", 0, size) + "&directIO=false");
  }
  Reply Hole(uint64_t begin, uint64_t end) {
    return Post(Target("sendHole", begin, end));
  }
  Reply Write(uint64_t begin, uint64_t end, std::string_view body) {
    return Post(Target("writeData", begin, end), body);
  }
  Reply Close() {
    return Post("/v1-ssync/close?checksumMethod=sha512&checksum=");
  }
  Conn& conn() { return conn_; }
  void Drop() { fd_.Reset(); }

 private:
  base::UniqueFd fd_;
  Conn conn_;
};

class PushReceiverTest : public ::testing::Test {
 protected:
  PushReceiverTest() {
    content_ = RandomBytes(5 * kMiB + 512, 3);
    std::fill_n(content_.begin() + kMiB, kMiB + 4096, '\0');
    spec_.validator = "push";
  }
  ~PushReceiverTest() override {
    stop_.request_stop();
    if (result_.valid()) result_.wait();
  }

  void OpenIngest(store::IngestOptions options = {}) {
    ingest_.reset();
    auto ingest = store::Ingest::Open(scratch_.disk, kKey, std::move(options));
    ASSERT_TRUE(ingest.ok()) << ingest.status().ToString();
    ingest_ = *std::move(ingest);
  }
  // Begins to receive.
  void Start() {
    if (!ingest_) OpenIngest();
    auto [listener, port] = http::ListenLocal();
    port_ = port;
    result_ = std::async(std::launch::async,
                         [this, fd = std::move(listener)]() mutable {
                           return ReceivePush(
                               *ingest_, std::move(fd), loop_, pool_, spec_,
                               [this] { ++on_bytes_; }, stop_.get_token());
                         });
  }
  // And a sender opened: was anything there?
  std::unique_ptr<Sender> StartOpened(const std::string& there = "false") {
    Start();
    auto sender = std::make_unique<Sender>(port_);
    const Reply reply = sender->Open(content_.size());
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, there);
    return sender;
  }
  PullResult Result() {
    if (result_.wait_for(kSoon) != std::future_status::ready) {
      ADD_FAILURE() << "it does not end";
      stop_.request_stop();
    }
    return result_.get();
  }
  void Give(Sender& sender, uint64_t begin, uint64_t end) {
    const Reply reply = sender.Write(
        begin, end,
        std::string_view(content_).substr(
            begin, std::min<uint64_t>(end, content_.size()) - begin));
    EXPECT_EQ(reply.status, 200) << reply.body;
    EXPECT_EQ(reply.body, "");
  }
  void GiveAll(Sender& sender) {
    for (uint64_t at = 0; at < content_.size(); at += kMiB) {
      Give(sender, at, std::min<uint64_t>(at + kMiB, content_.size()));
    }
  }
  // What getChecksum answers for an interval that is there.
  std::string Checksum(uint64_t begin, uint64_t end) {
    const uint64_t length = std::min<uint64_t>(end, content_.size()) - begin;
    return "\"" +
           Sha512(std::string_view(content_).substr(begin, length)).Base64() +
           "\"";
  }
  void ExpectChecksum(Sender& sender, uint64_t begin, uint64_t end,
                      const std::string& body) {
    const Reply reply = sender.Get(Sender::Target("getChecksum", begin, end));
    EXPECT_EQ(reply.status, 200) << begin << " to " << end;
    EXPECT_EQ(reply.body, body) << begin << " to " << end;
    EXPECT_THAT(reply.head, HasSubstr("Content-Type: application/json\r\n"));
  }
  // As senders do it when something is there. How many bytes it sent.
  uint64_t GiveWhatDiffers(Sender& sender, uint64_t step) {
    uint64_t sent = 0;
    for (uint64_t at = 0; at < content_.size(); at += step) {
      const uint64_t end = std::min<uint64_t>(at + step, content_.size());
      const Reply reply = sender.Get(Sender::Target("getChecksum", at, end));
      EXPECT_EQ(reply.status, 200) << reply.body;
      if (reply.body == Checksum(at, end)) continue;
      Give(sender, at, end);
      sent += end - at;
    }
    return sent;
  }
  void ExpectPublished(const PullResult& result) {
    ASSERT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    BIM_EXPECT_OK(result.outcome.status);
    ASSERT_TRUE(result.record);
    EXPECT_EQ(result.record->sha512, Sha512(content_));
    EXPECT_TRUE(ReadAll(scratch_.Path(store::DataFile(kKey))) == content_);
    EXPECT_EQ(on_bytes_, 1);
  }
  void ExpectFailed(const PullResult& result, Failure failure,
                    const std::string& text) {
    EXPECT_EQ(result.outcome.failure, failure)
        << result.outcome.status.ToString();
    EXPECT_THAT(result.outcome.status.message(), HasSubstr(text));
    EXPECT_FALSE(result.record);
    EXPECT_FALSE(Exists(scratch_.Path(store::DataFile(kKey))));
  }
  // Answered, and the receive is over with the same words.
  void ExpectViolation(const Reply& reply, const std::string& text,
                       Failure failure = Failure::kWrong) {
    EXPECT_EQ(reply.status, 400) << reply.head;
    EXPECT_THAT(reply.body, HasSubstr(text));
    ExpectFailed(Result(), failure, text);
  }
  void AwaitStored(uint64_t bytes) {
    const auto deadline = steady_clock::now() + kSoon;
    while (ingest_->stored_bytes() < bytes && steady_clock::now() < deadline) {
      std::this_thread::sleep_for(milliseconds(2));
    }
    EXPECT_EQ(ingest_->stored_bytes(), bytes);
  }

  static void AwaitBytes(const Progress& progress, uint64_t bytes) {
    const auto deadline = steady_clock::now() + kSoon;
    while (progress.wire_bytes < bytes && steady_clock::now() < deadline) {
      std::this_thread::sleep_for(milliseconds(2));
    }
    EXPECT_GE(progress.wire_bytes, bytes);
  }

  ScratchDisk scratch_;
  std::string content_;
  PushReceiveSpec spec_;
  std::stop_source stop_;
  exec::EventLoop loop_;
  exec::WorkerPool pool_{"test", 6};
  std::unique_ptr<store::Ingest> ingest_;
  std::atomic<int> on_bytes_{0};
  uint16_t port_ = 0;
  std::future<PullResult> result_;
};

TEST_F(PushReceiverTest, OneConnection) {
  Progress progress;
  spec_.progress = &progress;
  auto sender = StartOpened();
  Give(*sender, 0, kMiB);
  EXPECT_EQ(sender->Hole(kMiB, 2 * kMiB).status, 200);
  ExpectChecksum(*sender, 0, kMiB, Checksum(0, kMiB));
  ExpectChecksum(*sender, 2 * kMiB, 3 * kMiB, "null");
  EXPECT_EQ(sender->Get("/v1-ssync/getRecordedMetadata").status, 404);
  Give(*sender, 2 * kMiB, content_.size());
  const Reply closed = sender->Close();
  EXPECT_EQ(closed.status, 200);
  ExpectPublished(Result());
  EXPECT_EQ(progress.wire_bytes, content_.size() - kMiB);
}

// As senders do it: four at once, in any order, the last interval and the last
// hole rounded up, now and then one again.
TEST_F(PushReceiverTest, FourConnectionsInAnyOrder) {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    on_bytes_ = 0;
    content_ = RandomBytes(9 * kMiB + 512 * (1 + seed), seed);
    std::fill_n(content_.begin() + 3 * kMiB, 2 * kMiB, '\0');
    if (seed % 2 == 1) std::fill(content_.end() - 8192, content_.end(), '\0');
    OpenIngest({.expect_sha512 = Sha512(content_)});
    auto first = StartOpened();
    struct Piece {
      uint64_t begin, end;
      bool hole;
    };
    std::mt19937 random(seed);
    std::vector<Piece> pieces;
    for (uint64_t at = 0; at < content_.size();) {
      const uint64_t end = at + (1 + random() % 512) * 4096;
      const bool zero = std::string_view(content_)
                            .substr(at, end - at)
                            .find_first_not_of('\0') == std::string_view::npos;
      // Beyond the end by less than a block.
      const uint64_t up = (content_.size() + 4095) / 4096 * 4096;
      pieces.push_back({at, std::min(end, up), zero});
      if (random() % 6 == 0) pieces.push_back(pieces.back());
      at = end;
    }
    std::shuffle(pieces.begin(), pieces.end(), random);
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        Sender sender(port_);
        for (size_t at; (at = next++) < pieces.size();) {
          const Piece& piece = pieces[at];
          if (piece.hole) {
            EXPECT_EQ(sender.Hole(piece.begin, piece.end).status, 200);
          } else {
            Give(sender, piece.begin, piece.end);
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(first->Close().status, 200);
    ExpectPublished(Result());
    EXPECT_LE(test::AllocatedBytes(scratch_.Path(store::DataFile(kKey))),
              content_.size() - kMiB);
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
    if (HasFailure()) return;
  }
}

// Zeros within data stay holes wherever the network cuts it.
TEST_F(PushReceiverTest, BodiesInOddPieces) {
  content_ = RandomBytes(128 * 1024, 5);
  std::fill_n(content_.begin() + 16 * 1024, 64 * 1024, '\0');
  auto sender = StartOpened();
  for (const uint64_t begin : {uint64_t{512}, uint64_t{0}}) {
    const uint64_t end = begin == 0 ? 512 : content_.size();
    sender->Start("POST", Sender::Target("writeData", begin, end), "",
                  end - begin);
    for (uint64_t at = begin; at < end; at += 777) {
      sender->More(std::string_view(content_).substr(
          at, std::min<uint64_t>(777, end - at)));
      std::this_thread::sleep_for(milliseconds(1));  // apart, mostly
    }
    EXPECT_EQ(sender->Read().status, 200);
  }
  EXPECT_EQ(sender->Close().status, 200);
  ExpectPublished(Result());
  EXPECT_EQ(test::AllocatedBytes(scratch_.Path(store::DataFile(kKey))),
            64 * 1024u);
}

TEST_F(PushReceiverTest, ChunkedBodies) {
  content_ = RandomBytes(1024, 6);
  auto sender = StartOpened();
  sender->Start("POST", Sender::Target("writeData", 0, 1024), "", std::nullopt);
  sender->More("400\r\n" + content_ + "\r\n0\r\n\r\n");
  EXPECT_EQ(sender->Read().status, 200);
  EXPECT_EQ(sender->Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, OpenAgain) {
  spec_.expected_size = spec_.max_size = content_.size();
  auto sender = StartOpened();
  Give(*sender, 0, kMiB);
  Sender other(port_);
  const Reply again = other.Open(content_.size());
  EXPECT_EQ(again.status, 200);
  EXPECT_EQ(again.body, "false");
  AwaitStored(kMiB);
  ExpectViolation(other.Open(content_.size() + 512), "wrong size");
  EXPECT_EQ(on_bytes_, 1);
}

TEST_F(PushReceiverTest, WrongSizes) {
  const auto refused = [&](uint64_t size, const std::string& text) {
    Start();
    Sender sender(port_);
    ExpectViolation(sender.Open(size), text, Failure::kPermanent);
    EXPECT_EQ(on_bytes_, 0);
    EXPECT_FALSE(Exists(scratch_.Path(store::TempFile(kKey))));
  };
  refused(0, "expected a multiple of 512 bytes, the sender's file has 0");
  refused(5000, "expected a multiple of 512 bytes, the sender's file has 5000");
  spec_.max_size = 8192;
  refused(8704, "expected at most 8192 bytes");
  spec_.expected_size = 4096;
  refused(4608, "expected 4096 bytes, the sender's file has 4608");
}

TEST_F(PushReceiverTest, OpensThatAreNone) {
  for (const char* query :
       {"", "?begin=0", "?end=512", "?begin=0&end=", "?begin=0&end=-512",
        "?begin=0&end=512x", "?begin=0&end=99999999999999999999",
        "?begin=512&end=1024", "?begin=0&end=512&end=1024",
        "?begin=0&end=18446744073709551104"}) {
    Start();
    Sender sender(port_);
    const Reply reply = sender.Get(std::string("/v1-ssync/open") + query);
    EXPECT_EQ(reply.status, 400) << query;
    ExpectFailed(Result(), Failure::kWrong, "open");
  }
}

TEST_F(PushReceiverTest, BeforeTheOpenNothingIsTaken) {
  Start();
  Sender sender(port_);
  EXPECT_EQ(sender.Hole(0, 512).status, 400);
  EXPECT_EQ(sender.Write(0, 512, std::string(512, 'x')).status, 400);
  EXPECT_EQ(sender.Get(Sender::Target("getChecksum", 0, 512)).status, 400);
  EXPECT_EQ(sender.Get("/v1-ssync/getRecordedMetadata").status, 400);
  EXPECT_EQ(sender.Close().status, 400);
  // And it was no failure.
  EXPECT_EQ(sender.Open(content_.size()).status, 200);
  GiveAll(sender);
  EXPECT_EQ(sender.Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, OtherPathsAndMethods) {
  auto sender = StartOpened();
  for (const char* path : {"/", "/v1-ssync", "/v1-ssync/", "/v1-ssync/opens",
                           "/v2-ssync/open", "/v1-ssync/open/x"}) {
    EXPECT_EQ(sender->Get(path).status, 404) << path;
    EXPECT_EQ(sender->Post(path, "body").status, 404) << path;
  }
  for (const char* name : {"writeData", "sendHole", "close"}) {
    const Reply reply = sender->Get(Sender::Target(name, 0, 512));
    EXPECT_EQ(reply.status, 405) << name;
    EXPECT_THAT(reply.head, HasSubstr("Allow: POST\r\n"));
  }
  for (const char* name : {"open", "getChecksum", "getRecordedMetadata"}) {
    const Reply reply = sender->Post(Sender::Target(name, 0, 512), "body");
    EXPECT_EQ(reply.status, 405) << name;
    EXPECT_THAT(reply.head, HasSubstr("Allow: GET\r\n"));
  }
  EXPECT_EQ(sender->Get(Sender::Target("close", 0, 512), "DELETE").status, 405);
  GiveAll(*sender);
  EXPECT_EQ(sender->Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, IntervalsThatCannotBe) {
  const uint64_t size = content_.size();
  const std::pair<uint64_t, uint64_t> intervals[] = {
      {size, size + 512}, {512, 512},  {1024, 512},
      {100, 512},         {512, 1000}, {0, size + 64 * 1024},
      {0, INT64_MAX}};
  for (const auto& [begin, end] : intervals) {
    for (const bool hole : {true, false}) {
      on_bytes_ = 0;
      auto sender = StartOpened();
      Give(*sender, 0, 4096);
      const Reply reply =
          hole ? sender->Hole(begin, end) : sender->Write(begin, end, "some");
      SCOPED_TRACE(std::to_string(begin) + " to " + std::to_string(end));
      ExpectViolation(reply, hole ? "sendHole: " : "writeData: ");
      EXPECT_FALSE(Exists(scratch_.Path(store::TempFile(kKey))));
    }
  }
}

TEST_F(PushReceiverTest, BeyondTheEndByLessThanABlock) {
  const uint64_t size = content_.size();
  auto sender = StartOpened();
  Give(*sender, 0, size + 64 * 1024 - 1);
  EXPECT_EQ(sender->Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, BodiesOfAnotherLength) {
  const std::string body(2048, 'x');
  const std::string target = Sender::Target("writeData", 0, 1024);
  for (const size_t length :
       {size_t{0}, size_t{512}, size_t{1023}, size_t{1025}, size_t{2048}}) {
    auto sender = StartOpened();
    ExpectViolation(sender->Post(target, body.substr(0, length)),
                    "expected 1024 bytes, found " + std::to_string(length));
  }
  // The same of bodies that do not tell.
  const auto chunked = [&](size_t length, const std::string& found) {
    auto sender = StartOpened();
    sender->Start("POST", target, "", std::nullopt);
    char size[16];
    std::snprintf(size, sizeof(size), "%zx\r\n", length);
    sender->More(size + body.substr(0, length) + "\r\n0\r\n\r\n");
    ExpectViolation(sender->Read(), "expected 1024 bytes, found " + found);
  };
  chunked(600, "600");
  chunked(1536, "more");
  auto sender = StartOpened();
  ExpectViolation(sender->Post(Sender::Target("sendHole", 0, 512), "body"),
                  "expected no body");
}

TEST_F(PushReceiverTest, IntervalsThatAreTooLarge) {
  content_.clear();
  Start();
  Sender sender(port_);
  EXPECT_EQ(sender.Open(1024 * kMiB).status, 200);
  // A hole may be as large as it likes.
  EXPECT_EQ(sender.Hole(0, 512 * kMiB).status, 200);
  sender.Start("POST", Sender::Target("writeData", 0, 64 * kMiB + 512),
               std::string(1024, 'x'), 64 * kMiB + 512);
  sender.More(std::string(64 * kMiB - 512, 'x'));
  // A body that takes long to be read through is cut off without an answer.
  const Reply reply = sender.Read();
  if (reply.status != 0) {
    EXPECT_EQ(reply.status, 400);
    EXPECT_THAT(reply.body, HasSubstr("at most 67108864 bytes"));
  }
  ExpectFailed(Result(), Failure::kWrong, "at most 67108864 bytes");
}

TEST_F(PushReceiverTest, ARepeatThatDiffersFails) {
  auto sender = StartOpened();
  Give(*sender, 0, kMiB);
  Give(*sender, 0, kMiB);
  std::string other = content_.substr(0, kMiB);
  other[5000] ^= 1;
  ExpectViolation(sender->Write(0, kMiB, other), "differ");
}

TEST_F(PushReceiverTest, EveryRequestBehindAFailureIsRefused) {
  auto sender = StartOpened();
  Sender other(port_);
  // As long as the rest of its body does not come it cannot be answered.
  sender->Start("POST", Sender::Target("writeData", 0, 100), "y", 100);
  const auto deadline = steady_clock::now() + kSoon;
  Reply reply;
  do {
    reply = other.Get(Sender::Target("getChecksum", 0, 512));
  } while (reply.status == 200 && steady_clock::now() < deadline);
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(reply.body, HasSubstr("nothing is received any more: writeData"));
  EXPECT_EQ(other.Hole(0, 512).status, 400);
  EXPECT_EQ(other.Open(content_.size()).status, 400);
  EXPECT_EQ(other.Close().status, 200);
  sender->More(std::string(99, 'y'));
  ExpectViolation(sender->Read(), "multiples of 512");
}

TEST_F(PushReceiverTest, ClosedEarly) {
  auto sender = StartOpened();
  Give(*sender, 0, kMiB);
  Give(*sender, 2 * kMiB, 3 * kMiB);
  EXPECT_EQ(sender->Close().status, 200);
  ExpectFailed(Result(), Failure::kTransient,
               "the sender closed early: 2097152 of 5243392 bytes came");
  // What came is gone on with: in the same process, and in another.
  for (const bool another : {false, true}) {
    if (another) {
      ingest_.reset();
      scratch_.Restart();
    }
    on_bytes_ = 0;
    auto again = StartOpened("true");
    EXPECT_EQ(ingest_->stored_bytes(), 2 * kMiB);
    if (!another) {
      EXPECT_EQ(again->Close().status, 200);
      const PullResult early = Result();
      EXPECT_EQ(early.resumed_bytes, 2 * kMiB);
      ExpectFailed(early, Failure::kTransient, "closed early");
      continue;
    }
    GiveAll(*again);
    EXPECT_EQ(again->Close().status, 200);
    const PullResult result = Result();
    EXPECT_EQ(result.resumed_bytes, 2 * kMiB);
    ExpectPublished(result);
  }
}

// What is there need not be sent again: the sender compares checksums.
TEST_F(PushReceiverTest, AResumedReceiveTellsWhatIsThere) {
  constexpr uint64_t kChunk = store::kMinChunkSize;
  const uint64_t size = content_.size();
  for (const bool another : {false, true}) {
    SCOPED_TRACE(another ? "in another process" : "in the same");
    on_bytes_ = 0;
    spec_.progress = nullptr;
    auto sender = StartOpened();
    Give(*sender, 0, kMiB);
    Give(*sender, 2 * kMiB, 2 * kMiB + kChunk + 4096);
    Give(*sender, size - 512, size);  // a chunk of its own
    EXPECT_EQ(sender->Close().status, 200);
    ExpectFailed(Result(), Failure::kTransient, "closed early");
    if (another) {
      ingest_.reset();
      scratch_.Restart();
    }
    on_bytes_ = 0;
    Progress progress;
    spec_.progress = &progress;
    auto again = StartOpened("true");
    Sender other(port_);
    EXPECT_EQ(other.Open(size).body, "true");
    const std::pair<uint64_t, uint64_t> there[] = {
        {0, kMiB},
        {0, 512},
        {kChunk - 512, kChunk + 512},
        {2 * kMiB, 2 * kMiB + kChunk},
        {size - 512, size},
        {size - 512, size + 3584}};  // rounded up
    for (const auto& [begin, end] : there) {
      ExpectChecksum(other, begin, end, Checksum(begin, end));
    }
    const std::pair<uint64_t, uint64_t> missing[] = {
        {kMiB, 2 * kMiB},
        {kMiB - 512, kMiB + 512},
        {0, kMiB + 512},
        {0, size},
        {2 * kMiB, 2 * kMiB + kChunk + 512},
        {2 * kMiB + kChunk, 2 * kMiB + kChunk + 4096},
        {size - 1024, size}};
    for (const auto& [begin, end] : missing) {
      ExpectChecksum(other, begin, end, "null");
    }
    // All but the four chunks, the one, and the last sector.
    const uint64_t sent = GiveWhatDiffers(*again, kChunk);
    EXPECT_EQ(sent, size - kMiB - kChunk - 512);
    EXPECT_EQ(GiveWhatDiffers(other, kMiB), 0u);
    EXPECT_EQ(progress.wire_bytes, sent);
    EXPECT_EQ(again->Close().status, 200);
    const PullResult result = Result();
    // What was begun of a chunk lives as long as its process.
    EXPECT_EQ(result.resumed_bytes, kMiB + kChunk + 512 + (another ? 0 : 4096));
    ExpectPublished(result);
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
    if (HasFailure()) return;
  }
  spec_.progress = nullptr;
}

// A sender that finds everything there has nothing to send but its close.
TEST_F(PushReceiverTest, EverythingIsThere) {
  auto sender = StartOpened();
  GiveAll(*sender);
  stop_.request_stop();
  ExpectFailed(Result(), Failure::kCancelled, "stopped");
  stop_ = std::stop_source();
  ingest_.reset();
  scratch_.Restart();
  on_bytes_ = 0;
  auto again = StartOpened("true");
  EXPECT_EQ(GiveWhatDiffers(*again, kMiB), 0u);
  EXPECT_EQ(again->Close().status, 200);
  const PullResult result = Result();
  EXPECT_EQ(result.resumed_bytes, content_.size());
  ExpectPublished(result);
}

// A sender of other content is told nothing that is not there.
TEST_F(PushReceiverTest, WhatAnotherValidatorLeftIsNotTold) {
  for (const bool another : {false, true}) {
    SCOPED_TRACE(another ? "in another process" : "in the same");
    spec_.validator = "push";
    on_bytes_ = 0;
    auto sender = StartOpened();
    Give(*sender, 0, kMiB);
    EXPECT_EQ(sender->Close().status, 200);
    ExpectFailed(Result(), Failure::kTransient, "closed early");
    if (another) {
      ingest_.reset();
      scratch_.Restart();
    }
    spec_.validator = "other";
    on_bytes_ = 0;
    auto again = StartOpened("false");
    ExpectChecksum(*again, 0, kMiB, "null");
    content_[7] ^= 1;
    EXPECT_EQ(GiveWhatDiffers(*again, kMiB), content_.size());
    EXPECT_EQ(again->Close().status, 200);
    const PullResult result = Result();
    EXPECT_EQ(result.resumed_bytes, 0u);
    ExpectPublished(result);
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
    if (HasFailure()) return;
  }
}

// Nor is a sender of a file of another size.
TEST_F(PushReceiverTest, AnotherSizeResumesNothing) {
  auto sender = StartOpened();
  Give(*sender, 0, kMiB);
  EXPECT_EQ(sender->Close().status, 200);
  ExpectFailed(Result(), Failure::kTransient, "closed early");
  content_ += std::string(512, 'x');
  on_bytes_ = 0;
  auto again = StartOpened("false");
  ExpectChecksum(*again, 0, kMiB, "null");
  GiveAll(*again);
  EXPECT_EQ(again->Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, AResumedFileThatDiffersIsWrong) {
  auto sender = StartOpened();
  Give(*sender, 0, kMiB);
  EXPECT_EQ(sender->Close().status, 200);
  ExpectFailed(Result(), Failure::kTransient, "closed early");
  content_[5000] ^= 1;
  auto again = StartOpened("true");
  const Reply there = again->Get(Sender::Target("getChecksum", 0, kMiB));
  EXPECT_NE(there.body, Checksum(0, kMiB));
  EXPECT_NE(there.body, "null");
  ExpectViolation(
      again->Write(0, kMiB, std::string_view(content_).substr(0, kMiB)),
      "differ");
}

TEST_F(PushReceiverTest, ChecksumsThatCannotBe) {
  const uint64_t size = content_.size();
  const std::pair<uint64_t, uint64_t> intervals[] = {
      {size, size + 512}, {512, 512},  {1024, 512},
      {100, 512},         {512, 1000}, {0, size + 64 * 1024}};
  for (const auto& [begin, end] : intervals) {
    auto sender = StartOpened();
    Give(*sender, 0, 4096);
    ExpectViolation(sender->Get(Sender::Target("getChecksum", begin, end)),
                    "getChecksum: ");
  }
}

// Nobody is kept busy with reading: of more than is sent at once nothing is
// told.
TEST_F(PushReceiverTest, ChecksumsOfLargeIntervals) {
  content_.assign(66 * kMiB, '\0');
  auto sender = StartOpened();
  EXPECT_EQ(sender->Hole(0, 66 * kMiB).status, 200);
  ExpectChecksum(*sender, kMiB, 65 * kMiB, Checksum(kMiB, 65 * kMiB));
  ExpectChecksum(*sender, kMiB, 65 * kMiB + 512, "null");
  EXPECT_EQ(sender->Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, ABrokenBodyCountsAsFarAsItCame) {
  auto sender = StartOpened();
  const std::string_view content = content_;
  // Whole pieces of it at once, the rest at the break.
  sender->Start("POST", Sender::Target("writeData", 0, 3 * kMiB),
                content.substr(0, 2 * kMiB + 1000), 3 * kMiB);
  AwaitStored(2 * kMiB);
  sender->Drop();
  AwaitStored(2 * kMiB + 512);
  Sender again(port_);
  GiveAll(again);
  EXPECT_EQ(again.Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, TheDigestThatACloseTells) {
  for (const bool right : {false, true}) {
    auto sender = StartOpened();
    GiveAll(*sender);
    const std::string digest =
        right ? Sha512(content_).Hex() : Sha512("another").Hex();
    EXPECT_EQ(
        sender->Post("/v1-ssync/close?checksumMethod=sha512&checksum=" + digest)
            .status,
        200);
    if (right) {
      ExpectPublished(Result());
    } else {
      ExpectFailed(Result(), Failure::kPermanent, "wrong checksum");
      on_bytes_ = 0;
      OpenIngest();
    }
  }
}

TEST_F(PushReceiverTest, ADigestThatIsNone) {
  auto sender = StartOpened();
  GiveAll(*sender);
  ExpectViolation(
      sender->Post("/v1-ssync/close?checksumMethod=sha512&checksum=xyz"),
      "close");
}

TEST_F(PushReceiverTest, AnotherMethodIsNoConcern) {
  auto sender = StartOpened();
  GiveAll(*sender);
  EXPECT_EQ(
      sender->Post("/v1-ssync/close?checksumMethod=crc64&checksum=xyz").status,
      200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, WhatIsInFlightAtTheCloseIsAwaited) {
  Progress progress;
  spec_.progress = &progress;
  auto sender = StartOpened();
  Give(*sender, kMiB, content_.size());
  Sender slow(port_);
  Sender closer(port_);
  const uint64_t given = progress.wire_bytes;
  slow.Start("POST", Sender::Target("writeData", 0, kMiB),
             std::string_view(content_).substr(0, 4096), kMiB);
  AwaitBytes(progress, given + 4096);
  EXPECT_EQ(sender->Close().status, 200);
  // Closed again, and nothing new is taken, but all of this is answered.
  EXPECT_EQ(closer.Close().status, 200);
  EXPECT_EQ(closer.Hole(kMiB, kMiB + 512).status, 400);
  EXPECT_EQ(closer.Close().status, 200);
  slow.More(std::string_view(content_).substr(4096, kMiB - 4096));
  EXPECT_EQ(slow.Read().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, NobodyComes) {
  spec_.open_timeout = milliseconds(200);
  Start();
  // Those that say nothing, or something else, are no senders.
  Sender silent(port_);
  Sender scanner(port_);
  EXPECT_EQ(scanner.Get("/").status, 404);
  const auto before = steady_clock::now();
  ExpectFailed(Result(), Failure::kTransient, "no sender came within 200 ms");
  EXPECT_LT(steady_clock::now() - before, milliseconds(20000));
  EXPECT_EQ(on_bytes_, 0);
}

TEST_F(PushReceiverTest, Stalls) {
  spec_.stall = milliseconds(400);
  auto sender = StartOpened();
  // Each byte and each request is progress.
  sender->Start("POST", Sender::Target("writeData", 0, 1024), "", 1024);
  const auto before = steady_clock::now();
  for (int i = 0; i < 8; ++i) {
    std::this_thread::sleep_for(milliseconds(100));
    sender->More(std::string_view(content_).substr(i * 128, 128));
  }
  EXPECT_EQ(sender->Read().status, 200);
  EXPECT_GT(steady_clock::now() - before, spec_.stall);
  sender->Start("POST", Sender::Target("writeData", 1024, 2048), "", 1024);
  const PullResult result = Result();
  ExpectFailed(result, Failure::kTransient,
               "the sender sent nothing for 400 ms");
}

TEST_F(PushReceiverTest, WaitingForTheRateIsNoStall) {
  content_.resize(256 * 1024);
  spec_.stall = milliseconds(200);
  exec::RateLimiter limiter(256 * 1024);
  spec_.limiter = &limiter;
  const auto before = steady_clock::now();
  auto sender = StartOpened();
  Give(*sender, 0, content_.size());
  Give(*sender, 0, 256 * 1024);
  EXPECT_GT(steady_clock::now() - before, milliseconds(900));
  EXPECT_EQ(sender->Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, StopEndsItSoon) {
  exec::RateLimiter limiter(1024);
  for (int phase = 0; phase < 4; ++phase) {
    Progress progress;
    spec_.progress = &progress;
    stop_ = std::stop_source();
    std::unique_ptr<Sender> sender;
    if (phase == 0) {
      Start();
    } else {
      spec_.limiter = phase == 3 ? &limiter : nullptr;
      sender = StartOpened();
      if (phase >= 2) {
        sender->Start("POST", Sender::Target("writeData", 0, kMiB),
                      std::string_view(content_).substr(0, 128 * 1024), kMiB);
        AwaitBytes(progress, phase == 2 ? 128 * 1024 : 1);
      }
    }
    const auto before = steady_clock::now();
    stop_.request_stop();
    ExpectFailed(Result(), Failure::kCancelled, "stopped");
    EXPECT_LT(steady_clock::now() - before, milliseconds(5000)) << phase;
    OpenIngest();
  }
}

TEST_F(PushReceiverTest, SilentConnectionsDoNotHinder) {
  Start();
  std::vector<std::unique_ptr<Sender>> silent;
  for (int i = 0; i < 60; ++i) {
    silent.push_back(std::make_unique<Sender>(port_));
    if (i % 2 == 0) silent.back()->More("POST /v1-ssync/wri");
  }
  Sender sender(port_);
  EXPECT_EQ(sender.Open(content_.size()).status, 200);
  for (int i = 0; i < 20; ++i) {
    silent.push_back(std::make_unique<Sender>(port_));
  }
  Sender other(port_);
  GiveAll(other);
  EXPECT_EQ(other.Close().status, 200);
  ExpectPublished(Result());
}

TEST_F(PushReceiverTest, WrongChecksumIsPermanentAndKeepsNothing) {
  OpenIngest({.expect_sha512 = Sha512("other")});
  auto sender = StartOpened();
  GiveAll(*sender);
  EXPECT_EQ(sender->Close().status, 200);
  ExpectFailed(Result(), Failure::kPermanent, "wrong checksum");
  EXPECT_FALSE(Exists(scratch_.Path(store::TempFile(kKey))));
}

TEST_F(PushReceiverTest, ALateOwnerIsADiskFailure) {
  auto sender = StartOpened();
  GiveAll(*sender);
  auto owner = store::DecodeOwner(ReadAll(scratch_.Path(store::kOwnerFile)));
  owner->epoch += 1;
  test::WriteAll(scratch_.Path(store::kOwnerFile), store::EncodeOwner(*owner));
  EXPECT_EQ(sender->Close().status, 200);
  const PullResult result = Result();
  EXPECT_EQ(result.outcome.failure, Failure::kDisk);
  EXPECT_EQ(result.outcome.status.code(), Code::kAborted);
}

TEST_F(PushReceiverTest, NoListener) {
  OpenIngest();
  const PullResult result =
      ReceivePush(*ingest_, base::UniqueFd(::socket(AF_INET, SOCK_STREAM, 0)),
                  loop_, pool_, spec_, [] {}, {});
  ExpectFailed(result, Failure::kPermanent, "listening");
}

}  // namespace
}  // namespace bim::transfer
