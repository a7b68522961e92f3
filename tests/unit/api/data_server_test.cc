#include "pkg/api/data_server.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/compress/decoder.h"
#include "pkg/transfer/wire.h"
#include "tests/unit/api/fake_manager.h"

namespace bim::api {
namespace {

using Fields = std::vector<std::pair<std::string, std::string>>;

constexpr char kEtag[] = "\"sha512:ab12\"";

// The value of a header line, or "(none)".
std::string Header(const http::Response& response, std::string_view name) {
  for (const auto& [field, value] : response.headers) {
    if (field == name) return value;
  }
  return "(none)";
}

// All of a body that is made.
std::string Made(const http::Response& response) {
  std::string all;
  while (true) {
    base::Result<std::string> piece = response.maker->Next();
    EXPECT_TRUE(piece.ok()) << piece.status().ToString();
    if (!piece.ok() || piece->empty()) return all;
    all += *piece;
  }
}

std::string Decoded(const std::string& encoded) {
  const auto decoder =
      compress::MakeDecoder(compress::Encoding::kZstd, uint64_t{1} << 32);
  std::string plain;
  const auto output = [&](std::span<const std::byte> data) {
    plain.append(reinterpret_cast<const char*>(data.data()), data.size());
    return base::OkStatus();
  };
  EXPECT_TRUE(decoder->Feed(std::as_bytes(std::span(encoded)), output).ok());
  EXPECT_TRUE(decoder->Finish(output).ok());
  return plain;
}

// What the server would send of a response with parts.
std::string Sent(const http::Response& response) {
  std::string sent = response.body;
  for (const http::FilePart& part : response.parts) {
    std::string bytes(part.end - part.begin, '\0');
    EXPECT_EQ(pread(response.file.get(), bytes.data(), bytes.size(),
                    static_cast<off_t>(part.begin)),
              static_cast<ssize_t>(bytes.size()));
    sent += bytes;
  }
  return sent;
}

// The bytes of [begin, end) as the reader of an extents body sees them.
std::string ReadExtents(const std::string& body, uint64_t begin, uint64_t end) {
  std::string bytes;
  transfer::ExtentReader reader(begin, end);
  const auto on_data = [&](std::span<const std::byte> data) {
    bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
    return base::OkStatus();
  };
  const auto on_zeros = [&](uint64_t count) {
    bytes.append(count, '\0');
    return base::OkStatus();
  };
  EXPECT_TRUE(
      reader.Feed(std::as_bytes(std::span(body)), on_data, on_zeros).ok());
  EXPECT_TRUE(reader.Finish(on_zeros).ok());
  return bytes;
}

std::string Noise(size_t size) {
  std::string noise;
  uint64_t state = 1;
  while (noise.size() < size) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    noise += static_cast<char>(state >> 56);
  }
  return noise;
}

class DataServerTest : public testing::Test {
 protected:
  ~DataServerTest() override {
    if (!file_.empty()) unlink(file_.c_str());
  }

  // What is sent, once there is a turn.
  http::Response Ask(http::Request request) {
    http::Response response = DataHandler(manager_)(request);
    if (!response.later) return response;
    EXPECT_NE(response.turns, nullptr);
    EXPECT_TRUE(response.body.empty()) << "nothing large waits";
    http::Response made = response.later();
    made.turns = response.turns;
    return made;
  }
  http::Response Get(const std::string& path, const std::string& query = "",
                     const std::string& method = "GET", Fields fields = {}) {
    return Ask({.method = method,
                .path = path,
                .query = query,
                .fields = std::move(fields)});
  }
  http::Response GetExtents(uint64_t begin, uint64_t end, Fields fields = {}) {
    return Get("/v1/images/a/b/extents",
               "begin=" + std::to_string(begin) + "&end=" + std::to_string(end),
               "GET", std::move(fields));
  }

  // An image of `size` bytes with data at offsets; holes elsewhere.
  void MakeFile(uint64_t size,
                const std::vector<std::pair<uint64_t, std::string>>& data) {
    char name[] = "/tmp/bim-data-XXXXXX";
    const base::UniqueFd fd(mkstemp(name));
    file_ = name;
    ASSERT_EQ(ftruncate(fd.get(), static_cast<off_t>(size)), 0);
    content_.assign(size, '\0');
    for (const auto& [offset, bytes] : data) {
      ASSERT_EQ(pwrite(fd.get(), bytes.data(), bytes.size(),
                       static_cast<off_t>(offset)),
                static_cast<ssize_t>(bytes.size()));
      content_.replace(offset, bytes.size(), bytes);
    }
    manager_.file = file_;
    manager_.file_size = size;
  }

  FakeManager manager_;
  std::string file_;
  std::string content_;
};

TEST_F(DataServerTest, ServesAnImage) {
  for (const char* method : {"GET", "HEAD"}) {
    const http::Response response =
        Get("/v1/images/debian/u-1/data", "", method);
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.content_type, "application/octet-stream");
    EXPECT_TRUE(response.file);
    EXPECT_EQ(response.file_size, 512u);
    ASSERT_EQ(response.headers.size(), 3u);
    EXPECT_EQ(Header(response, "X-Bim-Sha512"), "ab12");
    EXPECT_EQ(Header(response, "ETag"), kEtag);
    EXPECT_EQ(Header(response, "Vary"), "Accept-Encoding");
    const bool sends = std::string_view(method) == "GET";
    EXPECT_EQ(response.turns, sends ? manager_.turns : nullptr);
    EXPECT_EQ(response.rate, sends ? manager_.rate : nullptr);
  }
  EXPECT_EQ(manager_.name, "debian");
  EXPECT_EQ(manager_.uuid, "u-1");
  EXPECT_EQ(manager_.disk, "");
}

TEST_F(DataServerTest, TakesADisk) {
  EXPECT_EQ(Get("/v1/images/a/b/data", "disk=%2Fdisks%2Fx%20y+z").status, 200);
  EXPECT_EQ(manager_.disk, "/disks/x y+z");
  for (const char* query : {"disk=", "disk", "disk=%2", "disk=%zz", "disk=%00",
                            "disc=a", "x", "disk=a&disk=b", "disk=a&x=1"}) {
    const http::Response response = Get("/v1/images/a/b/data", query);
    EXPECT_EQ(response.status, 400) << query;
    EXPECT_TRUE(response.body.ends_with("\n"));
    EXPECT_FALSE(response.file);
  }
  EXPECT_EQ(Get("/v1/images/a/b/data", "&disk=a&").status, 200);
}

TEST_F(DataServerTest, MapsErrors) {
  const std::pair<base::Code, int> codes[] = {
      {base::Code::kNotFound, 404},
      {base::Code::kInvalidArgument, 400},
      {base::Code::kFailedPrecondition, 409},
      {base::Code::kUnavailable, 503},
      {base::Code::kPermissionDenied, 403},
      {base::Code::kInternal, 500},
      {base::Code::kResourceExhausted, 503},
      {base::Code::kDataLoss, 500}};
  for (const auto& [code, status] : codes) {
    manager_.fail = base::Status(code, "why");
    const http::Response response = Get("/v1/images/a/b/data");
    EXPECT_EQ(response.status, status);
    EXPECT_EQ(response.body, "why\n");
    EXPECT_TRUE(response.content_type.starts_with("text/plain"));
    EXPECT_FALSE(response.file);
  }
}

TEST_F(DataServerTest, CompressesTheWholeFileOnRequest) {
  MakeFile(5'000'001,
           {{0, "head"}, {1 << 20, Noise(700'000)}, {4'000'000, "tail"}});
  http::Response response = Get("/v1/images/a/b/data", "", "GET",
                                {{"accept-encoding", "gzip, zstd"}});
  EXPECT_EQ(response.status, 200);
  EXPECT_FALSE(response.file);
  EXPECT_EQ(response.content_type, "application/octet-stream");
  EXPECT_EQ(Header(response, "Content-Encoding"), "zstd");
  EXPECT_EQ(Header(response, "Vary"), "Accept-Encoding");
  // A range of the file must not be asked for by the tag of other bytes.
  EXPECT_EQ(Header(response, "ETag"), "W/" + std::string(kEtag));
  EXPECT_EQ(response.turns, manager_.turns);
  EXPECT_EQ(response.rate, manager_.rate);
  ASSERT_NE(response.maker, nullptr);
  EXPECT_EQ(Decoded(Made(response)), content_);
  EXPECT_EQ(*response.maker->Next(), "");

  response = Get("/v1/images/a/b/data", "encoding=zstd&disk=%2Fd");
  EXPECT_EQ(manager_.disk, "/d");
  EXPECT_EQ(response.content_type, "application/zstd");
  EXPECT_EQ(Header(response, "Content-Encoding"), "(none)");
  ASSERT_NE(response.maker, nullptr);
  EXPECT_EQ(Decoded(Made(response)), content_);
  EXPECT_EQ(Get("/v1/images/a/b/data", "encoding=gzip").status, 400);

  // Ranges, HEAD and those who do not want it get the file.
  http::Request range{.method = "GET",
                      .path = "/v1/images/a/b/data",
                      .range = "bytes=0-1",
                      .fields = {{"accept-encoding", "zstd"}}};
  EXPECT_TRUE(Ask(range).file);
  EXPECT_TRUE(
      Get("/v1/images/a/b/data", "", "HEAD", {{"accept-encoding", "zstd"}})
          .file);
  EXPECT_TRUE(Get("/v1/images/a/b/data", "", "GET",
                  {{"accept-encoding", "zstd;q=0, gzip"}})
                  .file);
}

TEST_F(DataServerTest, ACompressedHoleIsFastAndEndsRight) {
  MakeFile(uint64_t{1} << 28, {});
  const http::Response response = Get("/v1/images/a/b/data", "encoding=zstd");
  ASSERT_NE(response.maker, nullptr);
  const std::string encoded = Made(response);
  EXPECT_LT(encoded.size(), 1u << 20);
  EXPECT_EQ(Decoded(encoded).size(), uint64_t{1} << 28);
}

TEST_F(DataServerTest, ACompressedBodyOfAFileThatShrankBreaks) {
  MakeFile(100'000, {{0, Noise(100'000)}});
  manager_.file_size = 200'000;
  const http::Response response = Get("/v1/images/a/b/data", "encoding=zstd");
  ASSERT_NE(response.maker, nullptr);
  base::Result<std::string> piece(std::string{});
  do {
    piece = response.maker->Next();
  } while (piece.ok() && !piece->empty());
  EXPECT_EQ(piece.status().code(), base::Code::kFailedPrecondition);
  EXPECT_EQ(GetExtents(0, 512).status, 409);
}

TEST_F(DataServerTest, AFileThatIsModifiedIsNotSentOn) {
  MakeFile(1 << 20, {{0, Noise(1 << 20)}});
  http::Response whole = Get("/v1/images/a/b/data");
  http::Response part = GetExtents(0, 1 << 20);
  http::Response encoded = Get("/v1/images/a/b/data", "encoding=zstd");
  ASSERT_TRUE(whole.check && part.check);
  EXPECT_TRUE(whole.check().ok());
  EXPECT_TRUE(part.check().ok());
  ASSERT_EQ(::unlink(file_.c_str()), 0);
  EXPECT_TRUE(whole.check().ok()) << "removed, but still the same";
  const std::string path = "/proc/self/fd/" + std::to_string(whole.file.get());
  const base::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(pwrite(fd.get(), "x", 1, 5), 1);
  EXPECT_FALSE(whole.check().ok());
  EXPECT_FALSE(part.check().ok());
  EXPECT_FALSE(encoded.maker->Next().ok());
}

TEST_F(DataServerTest, ServesTheManifest) {
  manager_.record.key = {"a", "b"};
  manager_.record.stamp.size = 1 << 20;
  manager_.record.format = "raw";
  manager_.record.virtual_size = 1 << 20;
  manager_.record.chunk_size = store::kMinChunkSize;
  manager_.record.chunks.resize(4);
  for (store::Chunk& chunk : manager_.record.chunks) chunk.zero = true;
  manager_.record.chunk_count = 4;
  const http::Response response = Get("/v1/images/a/b/manifest");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.content_type, transfer::kManifestType);
  EXPECT_NE(response.turns, nullptr) << "so many at once";
  EXPECT_NE(response.turns, manager_.turns);
  EXPECT_EQ(Header(response, "ETag"),
            "\"sha512:" + manager_.record.sha512.Hex() + "\"");
  const auto record = store::DecodeManifest(response.body);
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  EXPECT_EQ(record->chunks, manager_.record.chunks);
  EXPECT_EQ(manager_.name, "a");
  EXPECT_EQ(Get("/v1/images/a/b/manifest", "disk=x").status, 400);
  EXPECT_EQ(Get("/v1/images/a/b/manifest", "", "PUT").status, 405);
  manager_.fail = base::FailedPreconditionError("not ready");
  EXPECT_EQ(Get("/v1/images/a/b/manifest").status, 409);
}

TEST_F(DataServerTest, ServesExtents) {
  MakeFile(16 << 20, {{0, Noise(8'192)}, {8 << 20, Noise(65'536)}});
  http::Response response = GetExtents(4'096, 9 << 20);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.content_type, transfer::kExtentsType);
  EXPECT_EQ(Header(response, "ETag"), kEtag);
  EXPECT_EQ(response.turns, manager_.turns);
  EXPECT_EQ(response.rate, manager_.rate);
  EXPECT_FALSE(response.parts.empty());
  EXPECT_EQ(response.file_size, 16u << 20);
  const std::string sent = Sent(response);
  EXPECT_LT(sent.size(), 1u << 20);
  EXPECT_EQ(ReadExtents(sent, 4'096, 9 << 20),
            content_.substr(4'096, (9 << 20) - 4'096));

  // Only a hole: the table alone, and no file that would be sent whole.
  response = GetExtents(1 << 20, 2 << 20);
  EXPECT_FALSE(response.file);
  EXPECT_EQ(ReadExtents(response.body, 1 << 20, 2 << 20),
            std::string(1 << 20, '\0'));

  EXPECT_EQ(Get("/v1/images/a/b/extents", "begin=0&end=512&disk=d1").status,
            200);
  EXPECT_EQ(manager_.disk, "d1");
  EXPECT_EQ(Get("/v1/images/a/b/extents", "begin=0&end=512", "HEAD").turns,
            nullptr);
}

TEST_F(DataServerTest, ExtentsHaveBounds) {
  MakeFile(uint64_t{200} << 20, {});
  EXPECT_EQ(GetExtents(0, 64 << 20).status, 200);
  EXPECT_EQ(GetExtents((200 << 20) - 1, 200 << 20).status, 200);
  for (const auto& [begin, end] :
       std::vector<std::pair<uint64_t, uint64_t>>{{0, 0},
                                                  {512, 512},
                                                  {512, 511},
                                                  {0, (64 << 20) + 1},
                                                  {0, (200 << 20) + 1},
                                                  {200 << 20, (200 << 20) + 1},
                                                  {UINT64_MAX, 1}}) {
    const http::Response response = GetExtents(begin, end);
    EXPECT_EQ(response.status, 400) << begin << " " << end;
    EXPECT_NE(response.body.find("209715200"), std::string::npos)
        << response.body;
    EXPECT_NE(response.body.find("67108864"), std::string::npos);
    EXPECT_FALSE(response.file);
  }
  for (const char* query :
       {"", "begin=0", "end=1", "begin=a&end=1", "begin=0&end=-1",
        "begin=0&end=18446744073709551616", "begin=0&end=1&x=1",
        "begin=0&end=1&end=2"}) {
    EXPECT_EQ(Get("/v1/images/a/b/extents", query).status, 400) << query;
  }
}

TEST_F(DataServerTest, ExtentsOfAnotherContentAreRefused) {
  MakeFile(512, {});
  EXPECT_EQ(GetExtents(0, 512, {{"if-match", kEtag}}).status, 200);
  EXPECT_EQ(GetExtents(0, 512, {{"if-match", "*"}}).status, 200);
  const http::Response response =
      GetExtents(0, 512, {{"if-match", "\"sha512:cd\""}});
  EXPECT_EQ(response.status, 412);
  EXPECT_NE(response.body.find(kEtag), std::string::npos);
  // Before the bounds: of another content they mean nothing.
  EXPECT_EQ(GetExtents(0, 4'096, {{"if-match", "\"x\""}}).status, 412);
}

TEST_F(DataServerTest, CompressesExtentsThatGetSmaller) {
  const std::string text(1'000'000, 't');
  MakeFile(32 << 20, {{0, text},
                      {2 << 20, text},
                      {8 << 20, Noise(1 << 20)},
                      {16 << 20, Noise(1 << 20)}});
  const Fields zstd = {{"accept-encoding", "zstd"}};
  http::Response response = GetExtents(100, 4 << 20, zstd);
  EXPECT_EQ(Header(response, "Content-Encoding"), "zstd");
  EXPECT_EQ(Header(response, "Vary"), "Accept-Encoding");
  EXPECT_FALSE(response.file);
  EXPECT_LT(response.body.size(), 100'000u);
  EXPECT_EQ(response.turns, manager_.turns);
  EXPECT_EQ(ReadExtents(Decoded(response.body), 100, 4 << 20),
            content_.substr(100, (4 << 20) - 100));

  // Noise, a hole, a long part, nobody asked: as it lies there.
  for (const auto& [begin, end, fields] :
       std::vector<std::tuple<uint64_t, uint64_t, Fields>>{
           {8 << 20, 9 << 20, zstd},
           {24 << 20, 25 << 20, zstd},
           {0, (4 << 20) + 1, zstd},
           {0, 4 << 20, {}},
           {0, 4 << 20, {{"accept-encoding", "gzip"}}}}) {
    response = GetExtents(begin, end, fields);
    EXPECT_EQ(Header(response, "Content-Encoding"), "(none)") << begin;
    EXPECT_EQ(ReadExtents(Sent(response), begin, end),
              content_.substr(begin, end - begin));
  }
}

TEST_F(DataServerTest, OtherPathsAndMethods) {
  EXPECT_EQ(Get("/healthz").status, 200);
  EXPECT_EQ(Get("/healthz").body, "ok\n");
  for (const char* path :
       {"/", "/v1/images/", "/v1/images/data", "/v1/images//data",
        "/v1/images/a/data", "/v1/images/a//data", "/v1/images//b/data",
        "/v1/images/a/b/c/data", "/v1/images/a/b/data/", "/v1/images/a/b",
        "/v1/images", "/v2/images/a/b/data", "/healthz/"}) {
    EXPECT_EQ(Get(path).status, 404) << path;
  }
  EXPECT_EQ(Get("/healthz", "", "POST").status, 405);
  EXPECT_EQ(Header(Get("/v1/images/a/b/data", "", "PUT"), "Allow"),
            "GET, HEAD");
  for (const char* method : {"GET", "POST", "DELETE"}) {
    const http::Response refusal = Get("/v1/images/a/b/upload", "", method);
    EXPECT_EQ(refusal.status, 405) << method;
    EXPECT_EQ(Header(refusal, "Allow"), "HEAD, PUT, PATCH");
  }
  for (const char* method : {"PUT", "PATCH", "POST", "DELETE"}) {
    for (const char* path :
         {"/healthz", "/v1/images/a/b/data", "/v1/images/a/b/manifest",
          "/v1/images/a/b/extents"}) {
      const http::Response refusal = Get(path, "", method);
      EXPECT_EQ(refusal.status, 405) << method << " " << path;
      EXPECT_EQ(Header(refusal, "Allow"), "GET, HEAD");
    }
  }
}

}  // namespace
}  // namespace bim::api
