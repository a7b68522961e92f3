// Other daemons, played by real HTTP servers that tell manifests and extents
// from memory and can lie.
#include "pkg/transfer/peers.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>

#include "pkg/compress/encoder.h"
#include "pkg/http/server.h"
#include "pkg/store/publish.h"
#include "pkg/transfer/peer_source.h"
#include "pkg/transfer/wire.h"
#include "tests/unit/http/sockets.h"
#include "tests/unit/store/scratch.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Result;
using base::Status;
using std::chrono::milliseconds;
using std::chrono::seconds;
using test::AsBytes;
using test::Exists;
using test::RandomBytes;
using test::ReadAll;
using test::ScratchDisk;
using test::Sha256;
using test::Sha512;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Clock = PeerBook::Clock;
using Fault = PeerBook::Fault;

const store::ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kMiB = 1024 * 1024;
constexpr uint64_t kChunk = store::kMinChunkSize;

store::ImageRecord RecordOf(std::string_view content) {
  store::ImageRecord record;
  record.key = kKey;
  record.stamp.size = content.size();
  record.format = "raw";
  record.virtual_size = content.size();
  record.sha512 = Sha512(content);
  record.sha256 = Sha256(content);
  record.chunk_size = kChunk;
  for (size_t at = 0; at < content.size(); at += kChunk) {
    const std::string_view piece = content.substr(at, kChunk);
    store::Chunk chunk;
    chunk.zero = piece.find_first_not_of('\0') == std::string_view::npos;
    if (!chunk.zero) {
      const base::Digest digest = Sha256(piece);
      std::copy(digest.bytes().begin(), digest.bytes().end(),
                chunk.sha256.begin());
    }
    record.chunks.push_back(chunk);
  }
  record.chunk_count = static_cast<uint32_t>(record.chunks.size());
  return record;
}

// A daemon that has one image.
// A body whose connection ends in the middle.
class HalfBody : public http::BodyMaker {
 public:
  explicit HalfBody(std::string body)
      : half_(body.substr(0, body.size() / 2)) {}
  Result<std::string> Next() override {
    if (half_.empty()) return base::UnavailableError("over");
    return std::exchange(half_, {});
  }

 private:
  std::string half_;
};

class FakePeer {
 public:
  explicit FakePeer(const std::string& content)
      : content_(content), manifest(store::EncodeManifest(RecordOf(content))) {
    auto [listener, port] = http::ListenLocal();
    info.manager_id = "m";
    info.ip = "127.0.0.1";
    info.data_port = port;
    info.api_version = kManifestApiVersion;
    auto server = http::Server::Start(
        loop_, pool_, std::move(listener),
        [this](const http::Request& request) { return Answer(request); }, {});
    BIM_CHECK(server.ok());
    server_ = *std::move(server);
  }
  ~FakePeer() {
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
      wake_.notify_all();
    }
    server_.reset();
  }

 private:
  const std::string content_;

 public:
  // How it behaves; set before it is asked.
  PeerInfo info;
  std::string manifest;
  int manifest_status = 200;
  bool stall_manifest = false;
  std::optional<uint64_t> wrong_at;        // a byte of the content
  std::optional<std::string> content_now;  // instead
  bool stall_extents = false;
  bool other_now = false;  // 412
  bool short_body = false;
  bool zstd = false;
  std::string extents_type = kExtentsType;
  milliseconds delay{0};  // of each answer
  std::atomic<bool> busy{false};
  std::atomic<int> cuts{0};  // so many answers end in the middle
  std::atomic<int> manifests{0};
  std::atomic<int> extents{0};
  std::atomic<uint64_t> given{0};

 private:
  http::Response Answer(const http::Request& request) {
    const std::string base = "/v1/images/" + kKey.name + "/" + kKey.uuid + "/";
    if (request.path == base + "manifest") {
      ++manifests;
      if (stall_manifest) Stall();
      http::Response response;
      response.status = manifest_status;
      if (manifest_status == 503) response.headers = {{"Retry-After", "1"}};
      response.content_type = kManifestType;
      response.body = manifest_status == 200 ? manifest : "no";
      return response;
    }
    if (request.path == base + "extents") return Extents(request);
    http::Response response;
    response.status = 404;
    return response;
  }
  http::Response Extents(const http::Request& request) {
    ++extents;
    http::Response response;
    if (busy) {
      response.status = 503;
      response.headers = {{"Retry-After", "1"}};
      return response;
    }
    if (stall_extents) Stall();
    const std::string validator = "\"" + ValidatorOf(Sha512(content_)) + "\"";
    if (other_now || request.Field("if-match") != validator) {
      response.status = 412;
      return response;
    }
    if (delay.count() > 0) {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, delay, [&] { return ended_; });
    }
    unsigned long long begin = 0, end = 0;
    BIM_CHECK(std::sscanf(request.query.c_str(), "begin=%llu&end=%llu", &begin,
                          &end) == 2);
    const std::string& from = content_now ? *content_now : content_;
    std::string data = from.substr(begin, end - begin);
    if (wrong_at && *wrong_at >= begin && *wrong_at < end) {
      data[*wrong_at - begin] ^= 1;
    }
    ExtentTable table{begin, end, {}};
    std::string body;
    for (uint64_t at = 0; at < data.size(); at += 65'536) {
      const std::string piece = data.substr(at, 65'536);
      if (piece.find_first_not_of('\0') == std::string::npos) continue;
      table.data.push_back({begin + at, begin + at + piece.size()});
      body += piece;
    }
    given += body.size();
    body = EncodeExtentTable(table) + body;
    if (short_body) body.resize(body.size() / 2);
    if (zstd && request.Field("accept-encoding") == "zstd") {
      const std::string small = compress::CompressZstd(AsBytes(body), 1);
      if (!small.empty()) {
        body = small;
        response.headers = {{"Content-Encoding", "zstd"}};
      }
    }
    response.content_type = extents_type;
    if (cuts.fetch_sub(1) > 0) {
      response.maker = std::make_unique<HalfBody>(body);
    } else {
      response.body = std::move(body);
    }
    return response;
  }
  void Stall() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return ended_; });
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool ended_ = false;
  exec::EventLoop loop_;
  exec::WorkerPool pool_{"peer", 8};
  std::unique_ptr<http::Server> server_;
};

class FakeResolver : public PeerResolver {
 public:
  Result<PeerInfo> Resolve(const std::string& address, milliseconds,
                           std::stop_token) override {
    std::lock_guard lock(mutex_);
    asked.push_back(address);
    const auto it = known.find(address);
    if (it == known.end()) return base::UnavailableError("cannot be reached");
    return it->second;
  }
  std::map<std::string, Result<PeerInfo>> known;
  std::vector<std::string> asked;

 private:
  std::mutex mutex_;
};

Network NetworkOf(std::string_view text) {
  auto network = Network::Parse(text);
  BIM_CHECK(network.ok());
  return *network;
}

// Of a silent peer: longer in a build that is slow.
milliseconds Patience() {
  const char* slowdown = std::getenv("BIM_TEST_SLOWDOWN");
  return milliseconds(300 * (slowdown ? std::max(1, std::atoi(slowdown)) : 1));
}

class PeersTest : public ::testing::Test {
 protected:
  PeersTest() {
    std::fill_n(content_.begin() + 2 * kMiB, kMiB + 77'777, '\0');
    options_.peers.connect = milliseconds(2000);
    options_.peers.first_byte = Patience();
    options_.peers.stall = Patience();
    spec_.pull.connections = 2;
    spec_.pull.progress = &progress_;
  }
  FakePeer& AddPeer(const std::string& address) {
    peers_.push_back(std::make_unique<FakePeer>(content_));
    query_.addresses.push_back(address);
    addresses_.push_back(address);
    return *peers_.back();
  }
  FoundPeers Find() {
    Know();
    return FindPeers(resolver_, book_, query_, options_, {});
  }
  // What is in the peers now is what the resolver tells.
  void Know() {
    for (size_t i = 0; i < peers_.size(); ++i) {
      resolver_.known.erase(addresses_[i]);
      resolver_.known.emplace(addresses_[i], peers_[i]->info);
    }
  }
  // All of them, as if the first one had told the manifest.
  FoundPeers All() {
    Know();
    FoundPeers found;
    found.manifest =
        std::make_shared<const store::ImageRecord>(RecordOf(content_));
    found.manifest_from = addresses_.empty() ? "" : addresses_[0];
    for (const std::string& address : addresses_) {
      found.peers.push_back({address, std::nullopt});
    }
    return found;
  }
  std::vector<std::string> AddressesOf(const FoundPeers& found) {
    std::vector<std::string> out;
    for (const Peer& peer : found.peers) out.push_back(peer.address);
    return out;
  }
  std::optional<Fault> FaultOf(const std::string& address) {
    const auto fault = book_.FaultOf(address, Clock::now());
    if (!fault) return std::nullopt;
    return fault->first;
  }
  void Open(const FoundPeers& found, bool trust) {
    ingest_.reset();
    store::IngestOptions options;
    options.reference = found.manifest;
    options.trust_reference = trust;
    auto ingest = store::Ingest::Open(scratch_.disk, kKey, std::move(options));
    ASSERT_TRUE(ingest.ok()) << ingest.status().ToString();
    ingest_ = *std::move(ingest);
  }
  PullResult Run(const FoundPeers& found, bool trust = false,
                 std::stop_token stop = {}) {
    if (!ingest_) Open(found, trust);
    return PullFromPeers(
        resolver_, book_, found, *ingest_, spec_, options_,
        [this] { ++on_bytes_; }, stop);
  }
  void ExpectPublished(const PullResult& result) {
    ASSERT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    ASSERT_TRUE(result.record);
    EXPECT_EQ(result.record->sha512, Sha512(content_));
    EXPECT_TRUE(ReadAll(scratch_.Path(store::DataFile(kKey))) == content_);
  }
  void ExpectFailed(const PullResult& result, Failure failure) {
    EXPECT_EQ(result.outcome.failure, failure)
        << result.outcome.status.ToString();
    EXPECT_FALSE(result.record);
    EXPECT_FALSE(Exists(scratch_.Path(store::DataFile(kKey))));
  }
  void Again() {
    ingest_.reset();
    BIM_ASSERT_OK(store::RemoveImage(*scratch_.disk, kKey, false));
    progress_.wire_bytes = 0;
    progress_.reused_bytes = 0;
  }
  LocalImage Local(const std::string& content, store::ImageRecord record) {
    const std::string path =
        scratch_.dir / ("local" + std::to_string(++locals_));
    test::WriteAll(path, content);
    return {base::UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)),
            std::move(record)};
  }

  std::string content_ = RandomBytes(6 * kMiB + 512, 3);
  ScratchDisk scratch_;
  FakeResolver resolver_;
  PeerBook book_;
  PeerQuery query_{{}, kKey, {}, {}, 0, 0};
  Options options_;
  PeerPullSpec spec_;
  Progress progress_;
  std::vector<std::unique_ptr<FakePeer>> peers_;
  std::vector<std::string> addresses_;
  std::unique_ptr<store::Ingest> ingest_;
  int on_bytes_ = 0;
  int locals_ = 0;
};

// --- book

TEST(PeerBookTest, PenaltiesDoubleUpToTenMinutes) {
  PeerBook book;
  auto now = Clock::now();
  EXPECT_FALSE(book.FaultOf("a", now));
  seconds expected{60};
  for (int i = 0; i < 8; ++i) {
    book.Penalize("a", Fault::kSoft, "slow " + std::to_string(i), seconds(60),
                  now);
    const auto fault = book.FaultOf("a", now + expected - milliseconds(1));
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->first, Fault::kSoft);
    EXPECT_EQ(fault->second, "slow " + std::to_string(i));
    EXPECT_FALSE(book.FaultOf("a", now + expected));
    now += expected;
    expected = std::min(expected * 2, seconds(600));
  }
  EXPECT_FALSE(book.FaultOf("b", now));
}

TEST(PeerBookTest, AWrongAnswerCountsUntilItsTimeIsOver) {
  PeerBook book;
  auto now = Clock::now();
  book.Penalize("a", Fault::kHard, "wrong", seconds(60), now);
  now += seconds(10);
  book.Penalize("a", Fault::kSoft, "slow", seconds(60), now);
  EXPECT_EQ(book.FaultOf("a", now)->first, Fault::kHard);
  now += seconds(120);
  EXPECT_FALSE(book.FaultOf("a", now));
  book.Penalize("a", Fault::kSoft, "slow", seconds(60), now);
  EXPECT_EQ(book.FaultOf("a", now)->first, Fault::kSoft);
  book.Forgive("a");
  EXPECT_FALSE(book.FaultOf("a", now));
  book.Penalize("a", Fault::kSoft, "slow", seconds(60), now);
  EXPECT_FALSE(book.FaultOf("a", now + seconds(60)));
}

TEST(PeerBookTest, Remembers1024) {
  PeerBook book;
  const auto now = Clock::now();
  for (int i = 0; i < 1100; ++i) {
    book.Penalize(std::to_string(i), Fault::kSoft, "r", seconds(60),
                  now + milliseconds(i));
  }
  int known = 0;
  for (int i = 0; i < 1100; ++i) {
    known += book.FaultOf(std::to_string(i), now + seconds(2)).has_value();
  }
  EXPECT_EQ(known, 1024);
  EXPECT_FALSE(book.FaultOf("0", now + seconds(2)));
  EXPECT_TRUE(book.FaultOf("1099", now + seconds(2)));
}

// --- finding

TEST_F(PeersTest, TheFirstThatHasItTellsTheManifest) {
  AddPeer("a:1").manifest_status = 404;
  AddPeer("b:1").manifest_status = 409;
  AddPeer("c:1");
  FakePeer& last = AddPeer("d:1");
  const FoundPeers found = Find();
  ASSERT_TRUE(found.manifest);
  EXPECT_EQ(found.manifest->sha512, Sha512(content_));
  EXPECT_EQ(found.manifest->chunks, RecordOf(content_).chunks);
  EXPECT_EQ(found.manifest_from, "c:1");
  EXPECT_FALSE(found.trusted);
  EXPECT_THAT(AddressesOf(found), ElementsAre("c:1", "d:1"));
  EXPECT_EQ(last.manifests, 0);
  ASSERT_EQ(found.complaints.size(), 2u);
  EXPECT_THAT(found.complaints[0], HasSubstr("a:1: cannot find the image"));
  EXPECT_THAT(found.complaints[1], HasSubstr("b:1: "));
  // Neither is a fault.
  EXPECT_FALSE(FaultOf("a:1"));
  EXPECT_FALSE(FaultOf("b:1"));
}

TEST_F(PeersTest, TrustedFirstSuspectsLastLiarsNot) {
  options_.peers.trusted = {NetworkOf("10.1.0.0/16"), NetworkOf("fd00::/8")};
  for (const char* address : {"10.2.0.1:9", "10.2.0.2:9", "10.2.0.3:9",
                              "10.1.0.1:9", "[fd00::1]:9", "[fe80::1]:9"}) {
    query_.addresses.push_back(address);
  }
  book_.Penalize("10.2.0.1:9", Fault::kSoft, "slow", seconds(60), Clock::now());
  book_.Penalize("10.1.0.1:9", Fault::kSoft, "slow", seconds(60), Clock::now());
  book_.Penalize("10.2.0.2:9", Fault::kHard, "lied", seconds(60), Clock::now());
  const FoundPeers found = Find();
  EXPECT_FALSE(found.manifest);
  EXPECT_THAT(found.peers, IsEmpty());
  EXPECT_THAT(resolver_.asked,
              ElementsAre("[fd00::1]:9", "10.2.0.3:9", "[fe80::1]:9",
                          "10.2.0.1:9", "10.1.0.1:9"));
  EXPECT_THAT(found.complaints.front(),
              HasSubstr("10.2.0.2:9: not asked, it failed before: lied"));
  EXPECT_EQ(FaultOf("[fe80::1]:9"), Fault::kSoft);
}

TEST_F(PeersTest, ANameIsTrustedByItsAddress) {
  options_.peers.trusted = {NetworkOf("127.0.0.0/8")};
  AddPeer("node-1:9500");
  EXPECT_TRUE(Find().trusted);
  options_.peers.trusted = {NetworkOf("10.0.0.0/8")};
  EXPECT_FALSE(Find().trusted);
}

TEST_F(PeersTest, AnotherImageIsNotTheOneWanted) {
  const auto expect_none = [&](const std::string& text) {
    const FoundPeers found = Find();
    EXPECT_FALSE(found.manifest);
    ASSERT_EQ(found.complaints.size(), 1u);
    EXPECT_THAT(found.complaints[0], HasSubstr(text));
    EXPECT_FALSE(FaultOf("a:1"));
  };
  AddPeer("a:1");
  query_.sha512 = Sha512("other");
  expect_none("it has another image: expected SHA-512");
  query_.sha512 = Sha512(content_);
  query_.sha256 = Sha256("other");
  expect_none("it has another image: expected SHA-256");
  query_.sha256 = Sha256(content_);
  query_.size = 512;
  expect_none("it has another image: expected 512 bytes");
  query_.size = content_.size();
  query_.max_size = 512;
  expect_none("at most 512 are allowed");
  query_.max_size = content_.size();
  EXPECT_TRUE(Find().manifest);
}

TEST_F(PeersTest, AWrongManifestIsRemembered) {
  FakePeer& peer = AddPeer("a:1");
  const std::string right = peer.manifest;
  store::ImageRecord other = RecordOf(content_);
  other.key.uuid = "u-2";
  std::string damaged = right;
  damaged[damaged.size() - 5] ^= 1;
  for (const std::string& wrong : {std::string(), std::string("hello"), damaged,
                                   right.substr(0, right.size() - 1),
                                   right + "x", store::EncodeManifest(other)}) {
    peer.manifest = wrong;
    EXPECT_FALSE(Find().manifest);
    EXPECT_EQ(FaultOf("a:1"), Fault::kHard);
    const int asked = peer.manifests;
    EXPECT_FALSE(Find().manifest);
    EXPECT_EQ(peer.manifests, asked);
    book_.Forgive("a:1");
  }
}

TEST_F(PeersTest, WhoCannotBeReachedIsAskedLast) {
  query_.addresses.push_back("gone:1");
  resolver_.known.emplace(
      "odd:1", base::FailedPreconditionError("no version in common"));
  query_.addresses.push_back("odd:1");
  AddPeer("a:1").stall_manifest = true;
  AddPeer("b:1").manifest_status = 503;
  AddPeer("c:1");
  const FoundPeers found = Find();
  EXPECT_EQ(found.manifest_from, "c:1");
  EXPECT_EQ(FaultOf("gone:1"), Fault::kSoft);
  EXPECT_FALSE(FaultOf("odd:1"));
  EXPECT_EQ(FaultOf("a:1"), Fault::kSoft);
  EXPECT_FALSE(FaultOf("b:1"));
  EXPECT_EQ(found.complaints.size(), 4u);
}

TEST_F(PeersTest, AnOlderOneHasTheWholeFileOnly) {
  AddPeer("old:1").info.api_version = kManifestApiVersion - 1;
  FoundPeers found = Find();
  ASSERT_TRUE(found.manifest);
  EXPECT_TRUE(found.manifest->chunks.empty());
  EXPECT_THAT(AddressesOf(found), ElementsAre("old:1"));
  ASSERT_TRUE(found.peers[0].info);
  // One without chunks is no better, one with them is.
  store::ImageRecord plain = RecordOf(content_);
  plain.chunks.clear();
  plain.chunk_count = 0;
  AddPeer("plain:1").manifest = store::EncodeManifest(plain);
  EXPECT_THAT(AddressesOf(Find()), ElementsAre("old:1"));
  AddPeer("new:1");
  found = Find();
  EXPECT_EQ(found.manifest_from, "new:1");
  EXPECT_FALSE(found.manifest->chunks.empty());
  EXPECT_THAT(AddressesOf(found), ElementsAre("new:1"));
}

TEST_F(PeersTest, AStopEndsTheSearch) {
  AddPeer("a:1");
  std::stop_source stop;
  stop.request_stop();
  Know();
  EXPECT_FALSE(
      FindPeers(resolver_, book_, query_, options_, stop.get_token()).manifest);
  EXPECT_THAT(resolver_.asked, IsEmpty());
}

// --- pulling

TEST_F(PeersTest, FromOne) {
  for (const bool trust : {false, true}) {
    FakePeer& peer = trust ? *peers_[0] : AddPeer("a:1");
    peer.given = 0;
    ExpectPublished(Run(Find(), trust));
    // Zeros do not travel, nor does anything twice.
    EXPECT_LE(peer.given, content_.size() - kMiB);
    EXPECT_GE(progress_.wire_bytes, peer.given);
    EXPECT_LE(progress_.wire_bytes, peer.given + 64 * 1024);
    Again();
  }
  EXPECT_EQ(on_bytes_, 2);
}

TEST_F(PeersTest, FromSeveral) {
  for (const char* address : {"a:1", "b:1", "c:1"}) {
    AddPeer(address).delay = milliseconds(30);
  }
  spec_.pull.connections = 4;
  ExpectPublished(Run(All()));
}

TEST_F(PeersTest, Compressed) {
  std::fill(content_.begin() + 4 * kMiB, content_.end() - 512, 'a');
  AddPeer("a:1").zstd = true;
  options_.peers.compression = WireCompression::kOn;
  ExpectPublished(Run(All()));
  EXPECT_LT(progress_.wire_bytes, 4 * kMiB);
}

TEST_F(PeersTest, OneOfTwoIsBad) {
  struct Case {
    const char* name;
    std::function<void(FakePeer&)> change;
    std::optional<Fault> fault;
  };
  const Case cases[] = {
      {"wrong byte", [](FakePeer& p) { p.wrong_at = 700'000; }, Fault::kHard},
      {"last byte", [](FakePeer& p) { p.wrong_at = 6 * kMiB + 511; },
       Fault::kHard},
      {"other image", [](FakePeer& p) { p.other_now = true; }, Fault::kSoft},
      {"stalls", [](FakePeer& p) { p.stall_extents = true; }, Fault::kSoft},
      {"short", [](FakePeer& p) { p.short_body = true; }, Fault::kHard},
      {"type", [](FakePeer& p) { p.extents_type = "text/html"; }, Fault::kHard},
      {"older", [](FakePeer& p) { p.info.api_version = 1; }, Fault::kSoft},
      {"busy", [](FakePeer& p) { p.busy = true; }, std::nullopt},
  };
  for (const Case& c : cases) {
    for (const bool trust : {false, true}) {
      SCOPED_TRACE(testing::Message() << c.name << " " << trust);
      peers_.clear();
      addresses_.clear();
      query_.addresses.clear();
      c.change(AddPeer("bad:1"));
      AddPeer("good:1");
      ExpectPublished(Run(All(), trust));
      EXPECT_EQ(FaultOf("bad:1"), c.fault);
      EXPECT_FALSE(FaultOf("good:1"));
      book_.Forgive("bad:1");
      Again();
      if (HasFailure()) return;
    }
  }
}

TEST_F(PeersTest, AllAreBadAndEachIsNamed) {
  AddPeer("wrong:1").wrong_at = 0;
  AddPeer("changed:1").other_now = true;
  FoundPeers found = All();
  found.peers.push_back({"gone:1", std::nullopt});
  const PullResult result = Run(found);
  ExpectFailed(result, Failure::kTransient);
  const std::string message(result.outcome.status.message());
  EXPECT_THAT(message, HasSubstr("no peer is left"));
  EXPECT_THAT(message, HasSubstr("wrong:1: chunk 0 of the source differs"));
  EXPECT_THAT(message, HasSubstr("changed:1: it has another image"));
  EXPECT_THAT(message, HasSubstr("gone:1: cannot be reached"));
  // What came is kept, and another one gives the rest.
  AddPeer("good:1");
  ExpectPublished(Run(All()));
}

TEST_F(PeersTest, AConnectionThatEndsIsMadeAgainOnce) {
  FakePeer& peer = AddPeer("replaced:1");
  peer.cuts = 1;
  ExpectPublished(Run(All()));
  EXPECT_FALSE(FaultOf("replaced:1"));
  Again();

  peer.cuts = 1000;
  peer.extents = 0;
  const PullResult result = Run(All());
  ExpectFailed(result, Failure::kTransient);
  EXPECT_THAT(std::string(result.outcome.status.message()),
              HasSubstr("the body ended early"));
  EXPECT_GE(peer.extents, 2);
  EXPECT_LE(peer.extents, 2 * static_cast<int>(spec_.pull.connections));
  EXPECT_EQ(FaultOf("replaced:1"), Fault::kSoft);
  peer.cuts = 0;
  ExpectPublished(Run(All()));
}

TEST_F(PeersTest, NobodyToAsk) {
  FoundPeers found = All();
  found.complaints = {"x:1: not here"};
  const PullResult result = Run(found);
  ExpectFailed(result, Failure::kTransient);
  EXPECT_THAT(std::string(result.outcome.status.message()),
              HasSubstr("x:1: not here"));
}

TEST_F(PeersTest, BusyOnesAreWaitedForAndNotHammered) {
  for (const size_t count : {1, 2}) {
    while (addresses_.size() < count) {
      AddPeer("p" + std::to_string(addresses_.size()));
    }
    for (auto& peer : peers_) {
      peer->busy = true;
      peer->extents = 0;
    }
    const auto begin = Clock::now();
    std::jthread later([&](std::stop_token stop) {
      std::mutex mutex;
      std::unique_lock lock(mutex);
      std::condition_variable_any wake;
      wake.wait_for(lock, stop, milliseconds(800), [] { return false; });
      for (auto& peer : peers_) peer->busy = false;
    });
    ExpectPublished(Run(All()));
    EXPECT_LT(Clock::now() - begin, seconds(20));
    int asked = 0;
    for (auto& peer : peers_) asked += peer->extents;
    EXPECT_LE(asked, 30);
    for (const std::string& address : addresses_) {
      EXPECT_FALSE(FaultOf(address));
    }
    Again();
  }
}

TEST_F(PeersTest, AWrongManifestWithItsBytesIsFoundInTheEnd) {
  // Each chunk is as told, and the whole is not.
  FakePeer& liar = AddPeer("liar:1");
  std::string other = content_;
  other[5] ^= 1;
  store::ImageRecord record = RecordOf(other);
  record.sha512 = Sha512(content_);
  liar.manifest = store::EncodeManifest(record);
  liar.content_now = other;
  const PullResult result = Run(Find(), false);
  ExpectFailed(result, Failure::kWrong);
  EXPECT_THAT(std::string(result.outcome.status.message()),
              HasSubstr("liar:1 told a wrong manifest"));
  EXPECT_EQ(FaultOf("liar:1"), Fault::kHard);
}

TEST_F(PeersTest, AStopEndsItAndWhatCameIsKept) {
  AddPeer("a:1").stall_extents = true;
  options_.peers.first_byte = options_.peers.stall = seconds(60);
  FoundPeers found = All();
  Open(found, true);
  BIM_ASSERT_OK(
      ingest_->Begin(content_.size(), ValidatorOf(found.manifest->sha512)));
  {
    auto writer = ingest_->Write(0, kMiB);
    BIM_ASSERT_OK(writer->Append(
        AsBytes(std::string_view(content_).substr(0, kMiB)), {}));
  }
  std::stop_source stop;
  std::jthread stopper([&] {
    while (peers_[0]->extents == 0) std::this_thread::yield();
    stop.request_stop();
  });
  const auto begin = Clock::now();
  ExpectFailed(Run(found, true, stop.get_token()), Failure::kCancelled);
  EXPECT_LT(Clock::now() - begin, seconds(10));
  EXPECT_FALSE(FaultOf("a:1"));
  stopper.join();
  AddPeer("b:1");
  found = All();
  found.peers.erase(found.peers.begin());
  Open(found, true);
  const PullResult result = Run(found, true);
  ExpectPublished(result);
  EXPECT_GE(result.resumed_bytes, kMiB);
}

TEST_F(PeersTest, BeforeCommitMayRefuse) {
  AddPeer("a:1");
  spec_.before_commit = [] { return base::AbortedError("not now"); };
  const PullResult result = Run(All());
  ExpectFailed(result, Failure::kDisk);
  EXPECT_EQ(result.outcome.status.code(), Code::kAborted);
  spec_.before_commit = nullptr;
  ExpectPublished(Run(All()));
}

// --- reusing

TEST_F(PeersTest, ChunksOfThisNodeAreNotFetched) {
  FakePeer& peer = AddPeer("a:1");
  for (const bool corrupt : {false, true}) {
    SCOPED_TRACE(corrupt);
    // The first three MiB under another name, moved by a chunk, and the tail.
    std::string local = RandomBytes(kChunk, 9) + content_.substr(0, 3 * kMiB) +
                        content_.substr(6 * kMiB - kChunk);
    const store::ImageRecord record = RecordOf(local);
    std::vector<LocalImage> locals;
    if (corrupt) {
      std::string damaged = local;
      damaged[kChunk + 10] ^= 1;
      locals.push_back(Local(damaged, record));
      locals.push_back(Local(local.substr(0, kChunk + kMiB / 2), record));
    }
    locals.push_back(Local(local, record));
    size_t next = 0;
    spec_.next_local = [&]() -> std::optional<LocalImage> {
      if (next == locals.size()) return std::nullopt;
      return std::move(locals[next++]);
    };
    peer.given = 0;
    ExpectPublished(Run(All(), corrupt));
    EXPECT_EQ(next, locals.size());
    // Two MiB, the zeros being known, and the tail.
    EXPECT_EQ(progress_.reused_bytes, 2 * kMiB + kChunk + 512);
    EXPECT_LE(peer.given, content_.size() - 3 * kMiB - kChunk - 512);
    Again();
  }
}

TEST_F(PeersTest, AllOfItIsHereAlready) {
  std::vector<LocalImage> locals;
  locals.push_back(Local(content_, RecordOf(content_)));
  spec_.next_local = [&]() -> std::optional<LocalImage> {
    if (locals.empty()) return std::nullopt;
    LocalImage local = std::move(locals.back());
    locals.pop_back();
    return local;
  };
  ExpectPublished(Run(All(), true));
  EXPECT_EQ(progress_.wire_bytes, 0u);
}

TEST_F(PeersTest, ReuseStops) {
  const FoundPeers found = All();
  Open(found, true);
  BIM_ASSERT_OK(ingest_->Begin(content_.size(), "v"));
  std::stop_source stop;
  stop.request_stop();
  int asked = 0;
  const NextLocalImage next = [&]() -> std::optional<LocalImage> {
    ++asked;
    return std::nullopt;
  };
  EXPECT_EQ(ReuseChunks(*ingest_, next, nullptr, stop.get_token()).code(),
            Code::kCancelled);
  EXPECT_EQ(asked, 0);
  BIM_EXPECT_OK(ReuseChunks(*ingest_, next, nullptr, {}));
  EXPECT_EQ(asked, 1);
  BIM_EXPECT_OK(ReuseChunks(*ingest_, nullptr, nullptr, {}));
}

}  // namespace
}  // namespace bim::transfer
