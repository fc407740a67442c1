<?php
/*
 * Fill a fresh copy of WordPress: install its schema, write posts, paint images. Run by php on the command line, in
 * the directory of the copy, with SHOP_NUMBER, SHOP_POSTS and SHOP_IMAGES in the environment. The same content each time.
 */

$number = (int) getenv('SHOP_NUMBER');
mt_srand(7919 * $number);

$_SERVER['HTTP_HOST'] = "shop-$number.example";
$_SERVER['REQUEST_URI'] = '/';
$_SERVER['SERVER_PROTOCOL'] = 'HTTP/1.1';
define('WP_INSTALLING', true);

// Nothing may leave the machine.
function wp_mail()
{
    return true;
}

require getcwd() . '/wp-load.php';
require ABSPATH . 'wp-admin/includes/upgrade.php';

$installed = wp_install("Shop $number", 'admin', "admin@shop-$number.example", true, '', "secret of shop $number");
if (is_wp_error($installed)) {
    fwrite(STDERR, $installed->get_error_message() . "\n");
    exit(1);
}

$words = explode(' ', 'shirt mug poster lamp chair blue green large small wooden cotton organic delivery tomorrow'
    . ' price discount €19.99 "quoted" it\'s 50% back\\slash Größe ärmellos 日本 🛒 <b>bold</b> semi;colon --dash ;; /* */');

function text(array $words, int $length): string
{
    $text = '';
    for ($i = 0; $i < $length; $i++) {
        $text .= $words[mt_rand(0, count($words) - 1)] . (mt_rand(0, 14) === 0 ? ".\n\n" : ' ');
    }
    return $text;
}

wp_defer_term_counting(true);
for ($i = 0, $posts = (int) getenv('SHOP_POSTS'); $i < $posts; $i++) {
    $post = wp_insert_post([
        'post_title' => text($words, 4),
        'post_content' => text($words, mt_rand(50, 600)),
        'post_status' => 'publish',
        'post_author' => 1,
        'post_date' => date('Y-m-d H:i:s', 1700000000 + 3600 * $i),
        'meta_input' => ['_price' => mt_rand(100, 99999) / 100, '_stock' => mt_rand(0, 50)],
    ], true);
    if (is_wp_error($post)) {
        fwrite(STDERR, $post->get_error_message() . "\n");
        exit(1);
    }
}
wp_defer_term_counting(false);

for ($i = 0, $images = (int) getenv('SHOP_IMAGES'); $i < $images; $i++) {
    $directory = sprintf('%swp-content/uploads/2024/%02d', ABSPATH, $i % 12 + 1);
    wp_mkdir_p($directory);
    $image = imagecreatetruecolor(640, 480);
    for ($shape = 0; $shape < 120; $shape++) {
        $colour = imagecolorallocate($image, mt_rand(0, 255), mt_rand(0, 255), mt_rand(0, 255));
        imagefilledellipse($image, mt_rand(0, 639), mt_rand(0, 479), mt_rand(5, 200), mt_rand(5, 200), $colour);
    }
    $file = sprintf('%s/product-%03d.%s', $directory, $i, $i % 4 ? 'jpg' : 'png');
    $i % 4 ? imagejpeg($image, $file, 88) : imagepng($image, $file);
    imagedestroy($image);
    wp_insert_attachment(['post_title' => basename($file), 'post_mime_type' => mime_content_type($file)], $file);
}

// What a plugin may bring: a view, a trigger, a procedure, foreign keys, binary data. All belong to the shop's own account.
$statements = [
    'CREATE TABLE shop_orders (id INT AUTO_INCREMENT PRIMARY KEY, placed DATETIME(6) NOT NULL, total DECIMAL(10,2) NOT NULL,'
        . ' token VARBINARY(32) NOT NULL, net DECIMAL(10,2) AS (ROUND(total / 1.19, 2)) STORED) ENGINE=InnoDB',
    'CREATE TABLE shop_order_lines (order_id INT NOT NULL, line INT NOT NULL, article TEXT, PRIMARY KEY (order_id, line),'
        . ' FOREIGN KEY (order_id) REFERENCES shop_orders (id) ON DELETE CASCADE) ENGINE=InnoDB',
    'CREATE TABLE shop_audit (id INT AUTO_INCREMENT PRIMARY KEY, what TEXT) ENGINE=InnoDB',
    "CREATE TRIGGER shop_orders_audit AFTER INSERT ON shop_orders FOR EACH ROW\n"
        . "BEGIN\n  /* every order leaves a trace */\n  INSERT INTO shop_audit (what) VALUES (CONCAT('order ', NEW.id));\nEND",
    'CREATE VIEW shop_revenue AS SELECT DATE(placed) AS day, SUM(total) AS total FROM shop_orders GROUP BY DATE(placed)',
    "CREATE PROCEDURE shop_count(OUT orders INT)\nBEGIN\n  SELECT COUNT(*) INTO orders FROM shop_orders;\nEND",
];
for ($i = 1; $i <= 200; $i++) {
    $token = '';
    for ($byte = 0; $byte < 32; $byte++) {
        $token .= sprintf('%02x', mt_rand(0, 255));
    }
    $statements[] = sprintf(
        "INSERT INTO shop_orders (id, placed, total, token) VALUES (%d, '%s.%06d', %d.%02d, x'%s')",
        $i, date('Y-m-d H:i:s', 1700000000 + 7200 * $i), mt_rand(0, 999999), mt_rand(1, 999), mt_rand(0, 99), $token
    );
    $statements[] = "INSERT INTO shop_order_lines VALUES ($i, 1, 'shirt'), ($i, 2, 'mug')";
}
foreach ($statements as $statement) {
    if ($wpdb->query($statement) === false) {
        fwrite(STDERR, $wpdb->last_error . "\n");
        exit(1);
    }
}
