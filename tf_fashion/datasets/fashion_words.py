"""Words of fashion captions: what general taggers get wrong in texts without verbs, and which words belong together."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLOURS = _words(
    """
    black white grey gray red blue green yellow orange purple pink brown beige cream ivory khaki navy teal turquoise aqua
    cyan maroon burgundy magenta lavender lilac violet mauve peach coral rust copper bronze gold golden silver metallic
    charcoal olive tan taupe camel nude mustard indigo rose fuchsia plum wine crimson scarlet multi multicolor multicolored
    multicolour multicoloured colorful colourful steel salmon mint emerald sapphire ecru melange mushroom champagne
    fluorescent neon off-white
    """
)
# Words before a colour that say which one: "navy blue", "heather grey".
SHADES = _words(
    """
    dark light pale bright deep navy royal sky baby hot heather charcoal olive forest lime sea mint army off midnight
    electric neon fluorescent pastel powder dusty burnt brick blood coffee ash steel slate rose cobalt medium soft solid
    """
)
# Pairs that describe a part and go before a garment as one: "short sleeve t-shirt".
PART_WORDS = _words(
    """
    sleeve neck heel waist rise cut strap shoulder hem collar leg toe top dot line length sole knee button print
    """
)
PART_QUALITIES = _words(
    """
    short long half full three-quarter 3/4 cap bell puff flutter v round crew scoop boat square halter turtle high low mid
    mini maxi polka animal leopard zebra floral wide thin spaghetti open cold off one a empire flat block peep closed pointed
    ankle knee tea
    """
)

NOUNS = _words(
    """
    t-shirt tshirt tee tees shirt shirts top tops blouse blouses tank tanks camisole cami tunic tunics sweater sweaters
    jumper jumpers cardigan cardigans sweatshirt sweatshirts hoodie hoodies jacket jackets coat coats blazer blazers vest
    vests waistcoat waistcoats dress dresses gown gowns skirt skirts jeans trousers pants shorts leggings jeggings capris
    chinos joggers tracksuit tracksuits jumpsuit romper dungarees kurta kurtas kurti kurtis saree sarees sari dupatta
    dupattas salwar churidar lehenga sherwani shoes shoe sneakers sneaker trainers boots boot pumps heels heel flats sandals
    sandal flip-flops flops slippers loafers moccasins ballerinas wedges oxfords socks stockings tights bra bras briefs
    boxers boxer trunk trunks panties lingerie camisoles nightdress nightwear nightgown pyjamas robe bathrobe swimwear bikini
    swimsuit belt belts bag bags handbag handbags clutch clutches backpack backpacks wallet wallets purse purses watch
    watches sunglasses glasses cap caps hat hats beanie scarf scarves stole stoles shawl shawls gloves tie ties cufflinks
    earrings necklace necklaces pendant bracelet bangle bangles ring rings jewellery jewelry umbrella perfume lipstick
    apparel topwear bottomwear innerwear loungewear footwear sportswear sleeve sleeves collar collars neckline necklines neck
    v-neck hem hemline waist waistband strap straps pocket pockets button buttons zipper zippers zip lace denim cotton
    leather silk wool linen satin velvet chiffon suede fur mesh knit jersey fleece corduroy canvas nylon polyester tweed
    cashmere stripe stripes dot dots polka plaid check checks flower flowers bow ruffle ruffles pleat pleats fringe sequin
    sequins embroidery bead beads graphic graphics logo logos letter lettering print prints pattern patterns buckle buckles
    sole soles toe toes bodice front cuff cuffs lapel peplum women womens men mens man woman girl girls boy boys unisex
    ladies gents lady track sports sport yoga gym polo crew  set bottoms tote satchel duffel laptop
    trolley headband wristband stocking nightie
    """
)
ADJECTIVES = _words(
    """
    sleeveless strapless backless v-necked short-sleeved long-sleeved knee-length high-heeled low-cut a-line halter solid
    plain striped checked dotted floral printed patterned embroidered pleated ruffled fitted sheer see-through formal casual
    sporty athletic ethnic traditional smart laid-back everyday fancy vintage loose tight slim skinny baggy flared cropped
    ripped distressed faded quilted padded hooded collared belted layered asymmetrical ruched lacy shiny glossy matte
    metallic sequined beaded fringed knitted crocheted one-shoulder off-shoulder high-low high-waisted low-rise mini midi
    maxi short long half full gender-neutral coloured colored male female
    """
)
# Neither nouns nor adjectives of a garment, whatever a tagger thinks.
OTHERS = _words(
    """
    is are was has have having with without and or but more less most very much same similar different instead rather than
    like looks looking look made makes designed meant intended suited suitable perfect ideal great good nice pick picks want
    wants need needs shown wearing wears worn featuring features comes come goes go paired compared showing shows being new
    also just only all both other another longer shorter darker lighter brighter tighter looser bigger smaller larger higher
    lower thicker thinner wider narrower fuller revealing flowy simpler fancier dressier her his him he she they them their
    our your my i you we it its this that these those who which what there here when where not no non any some each every one
    two three four five first second works fits suits part main anyone everyone either
    """
)
# Nouns only where something stands before them that belongs to them: "sports wear", but "they wear".
AFTER_MODIFIER = _words(
    """
    wear look looks print prints cut fit design style finish feel
    """
)
# What comes after these is not there to be seen.
NEGATIONS = frozenset(("no", "not", "non", "without", "minus", "lacks", "lacking"))
# Heads of phrases that name nothing that a picture of a garment shows by itself.
EMPTY_HEADS = _words(
    """
    look style colour color wear kind type range one thing item pair lot bit use way occasion picture image photo model size
    office day people person men women man woman guy guys lady ladies gentleman gents boy girl unisex him her amount shade
    hue tone piece product collection line version option side part area section feel vibe sport sports fashion kid kids fan
    fans wardrobe gender female male main occasions outfit work
    """
)
SAME_WORD = {
    "tshirt": "t-shirt",
    "teeshirt": "t-shirt",
    "mens": "men",
    "man": "men",
    "womens": "women",
    "woman": "women",
    "gray": "grey",
    "color": "colour",
    "colored": "coloured",
    "jewelry": "jewellery",
    "flip-flop": "flip flop",
    "flipflop": "flip flop",
    "sleeved": "sleeve",
    "necked": "neck",
}
IRREGULAR = {"scarves": "scarf", "feet": "foot", "women": "women", "men": "men", "children": "child", "less": "less"}


COLOUR_ENDINGS = frozenset(("colored", "coloured", "color", "colour"))
# Two words that are one, and how it is written.
PAIRS = {
    ("t", "shirt"): "t-shirt",
    ("t", "shirts"): "t-shirts",
    ("tee", "shirt"): "t-shirt",
    ("tee", "shirts"): "t-shirts",
    ("sweat", "shirt"): "sweatshirt",
    ("sweat", "shirts"): "sweatshirts",
    ("v", "neck"): "v-neck",
    ("v", "necks"): "v-necks",
    ("hand", "bag"): "handbag",
    ("flip", "flop"): "flip flop",
    ("flip", "flops"): "flip flops",
    ("laid", "back"): "laid-back",
    ("gender", "neutral"): "gender-neutral",
    ("see", "through"): "see-through",
}
